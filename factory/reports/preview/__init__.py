"""What a run would do with its data, found out without encoding or training."""
