"""The synthesize stage: one target picture per caption, from a pipeline on this machine or from an endpoint."""
