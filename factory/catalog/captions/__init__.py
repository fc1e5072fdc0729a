"""Captions of samples: where they are read from, and how they are filtered, drawn and shuffled."""
