"""Training: options, setup, the loop, losses, averages, snapshots and logs."""
