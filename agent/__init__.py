"""The command line: thin commands over `shared` and, for the local stack, `local`."""
