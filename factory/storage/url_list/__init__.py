"""url_list."""
