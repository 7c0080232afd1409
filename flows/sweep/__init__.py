"""Sweeps: one base configuration run with several settings and seeds, in one store, as a table."""
