"""The index of the cache: from the key of a recipe to a shard and row."""
