"""Care of a cache: compaction, garbage collection, verification, transfer, usage."""
