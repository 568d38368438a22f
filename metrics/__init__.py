"""Metrics of image quality and of 3D quality."""
