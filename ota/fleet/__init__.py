"""The operator's side: repository, publisher, chunk server, command line.  Not imported on a device."""
