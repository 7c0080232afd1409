"""The stages of the pipeline, and the engine that runs, commits and caches them. Independent of Prefect."""
