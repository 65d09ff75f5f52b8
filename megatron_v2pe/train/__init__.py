"""Training: configuration, step, optimizer, loop."""
