"""Storage: the fsspec root, parts and their markers, shards, published folders, fingerprints."""
