"""Runnable examples; `slamp compress examples.my_network:factory ...` imports them from the repository's root."""
