"""A version made again: each stage in a view of what it declares, in a sandbox, every output compared."""
