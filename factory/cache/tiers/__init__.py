"""Where shards are held: memory, local disk and remote storage."""
