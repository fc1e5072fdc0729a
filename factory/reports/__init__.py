"""What people read: tables of a run and of a cache, the dry run, explanations of steps."""
