"""What version 0.1 wrote is read by every later version, and what it trained on stays the same."""
