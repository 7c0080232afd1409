"""Outside models: where they are found, and how they are loaded."""
