"""Density grids, surfaces and meshes."""
