"""Geometry of buckets: the size a picture is trained at, and how it is resized and cut to it."""
