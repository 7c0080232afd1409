"""evaluate: the DreamBooth protocol."""
