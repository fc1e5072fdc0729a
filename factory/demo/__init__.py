"""The demonstration: its pictures, servers and small model; no data floor imports it."""
