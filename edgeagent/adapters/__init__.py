"""I/O: one outside thing a file.  Adapters do not know each other."""
