"""Saving, vetting and resuming distributed checkpoints."""
