"""Published benchmarks, read as they are."""
