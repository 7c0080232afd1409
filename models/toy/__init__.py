"""The toy world: a seeded renderer and the five checkpoints trained on it."""
