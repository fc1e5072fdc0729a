"""Where bulk work runs: reading, decoding and encoding many samples at once."""
