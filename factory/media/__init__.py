"""Bytes to arrays: headers, decoding, bucket geometry and crops, all pure functions."""
