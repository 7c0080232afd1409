"""Runs: their records, and what is asked of them."""
