"""Files of the cache: shards and index segments, recipes of rows, compression."""
