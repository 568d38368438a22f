"""Objects from checkpoints, and frames along camera paths."""
