"""Buckets and containers of object stores (S3, GCS, Azure) as storages."""
