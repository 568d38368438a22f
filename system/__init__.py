"""The machine and the command line: errors, flags, files written whole, locks, limits."""
