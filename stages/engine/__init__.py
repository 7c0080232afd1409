"""The contract of a stage, and the engine that runs stages."""
