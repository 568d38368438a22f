"""Discriminators that grow with the image size."""
