"""The score stage: says how good a sample is."""
