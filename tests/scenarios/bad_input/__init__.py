"""What goes wrong with what a user gives, from the config to the message."""
