"""Families of benchmarks, a folder each: what is asked, how it is scored, a made-up set, and a README with the data."""
