"""Takes the data set of a run out of the store."""
