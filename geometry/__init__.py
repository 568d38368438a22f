"""Shapes: densities on a grid, the surface at a level of them, and what a camera sees of it."""
