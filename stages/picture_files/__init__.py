"""Pictures and masks from outside, read in one place."""
