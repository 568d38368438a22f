"""Discriminators with one level per image size."""
