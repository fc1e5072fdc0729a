"""Scans: from a storage or a table to the facts of its samples."""
