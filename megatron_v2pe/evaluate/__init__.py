"""Benchmarks, scorers, the runner that asks a model, and the report."""
