"""One batch: its request, its readers, how rows are collated, and what replaces bad samples."""
