"""Bytes to arrays: headers, decoding, bucket geometry and cuts, all pure functions."""
