"""Benchmarks asked while a run trains: settings, what is looked at before, and the work between steps."""
