"""Tables of URLs as a storage: public addresses only, downloads kept in a cache."""
