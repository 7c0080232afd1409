"""segment: the subject's mask."""
