"""The built-in data set: procedural toy cars with known pose, depth and surface."""
