"""Encoded tensors, stored as rows of equal shape and found by their recipe."""
