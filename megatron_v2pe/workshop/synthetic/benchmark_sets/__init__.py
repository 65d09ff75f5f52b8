"""Writers of small made-up sets, family by family: the parts of `workshop/synthetic/benchmarks.py`."""
