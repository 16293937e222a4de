"""What of a version can be proved, check by check: its record against itself, the remote and MLflow against it."""
