"""S3-compatible object stores as a storage."""
