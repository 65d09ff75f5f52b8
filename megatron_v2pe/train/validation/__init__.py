"""Validation while training: the loss of data that never train, and the best checkpoints by it."""
