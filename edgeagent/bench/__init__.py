"""HOST: synthetic models and measurements, `edgeagent bench`.  The daemon never imports this."""
