"""A site between a repository and its devices: a client to the one, a server to the others."""
