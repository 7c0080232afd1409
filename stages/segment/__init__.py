"""The segment stage: makes the subject's mask."""
