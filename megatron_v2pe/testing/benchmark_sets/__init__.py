"""Writers of small made-up sets, family by family: the parts of `testing/synthetic_benchmarks.py`."""
