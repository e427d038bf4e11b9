"""PURE: samples in, joules and trends out.  No clock, no file, no socket."""
