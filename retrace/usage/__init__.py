"""What things were used in: raw data, files, hashes, commits, packages, records. `retrace.impact` is the command."""
