"""Processes of a training run, and the collective operations between them."""
