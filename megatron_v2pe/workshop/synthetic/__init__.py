"""Made-up models, tokenizers, data and benchmarks, for examples, measurements and tests."""
