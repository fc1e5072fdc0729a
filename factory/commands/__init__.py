"""Commands: what `train.py` and the scripts call."""
