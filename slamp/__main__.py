"""`python -m slamp` is the command `slamp`."""

from slamp.cli import main

if __name__ == "__main__":
    main()
