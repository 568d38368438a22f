"""The adversarial game: losses, updates, averages and the streams of random numbers."""
