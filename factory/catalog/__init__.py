"""Facts measured once and the decisions derived from them at every start."""
