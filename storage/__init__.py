"""Where things live: an fsspec root, parts with their markers, shards, folders, fingerprints."""
