"""What each box of the pipeline does, and the engine that runs, commits and caches it; nothing here knows Prefect."""
