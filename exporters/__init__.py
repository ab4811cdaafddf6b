"""One exporter per target, found through entry points."""
