"""The toy world: a seeded renderer of small pictures, and the programs that train the toy checkpoints."""
