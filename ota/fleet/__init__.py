"""The operator's side: repository, responder, command line.  Not imported on a device."""
