"""Tables that describe samples: Parquet, CSV, JSON lines, and how rows find their files."""
