"""The engine: runs stages, commits units, and decides what is cached."""
