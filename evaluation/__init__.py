"""How good pictures and geometry are: pure functions of images, depths, poses and features."""
