"""HOST: float checkpoints in, our packed layout out.  The daemon never imports this."""
