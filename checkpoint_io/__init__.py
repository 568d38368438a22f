"""Checkpoint files: our own and the published ones, loaded without executing anything in them."""
