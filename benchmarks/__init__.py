"""Speed, as ratios against a named baseline in one run: `python -m benchmarks`."""
