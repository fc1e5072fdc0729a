"""What ranks tell one another: consistency at the start, and who is alive."""
