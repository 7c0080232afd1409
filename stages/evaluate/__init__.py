"""The evaluate stage: the DreamBooth protocol on a folder of subjects."""
