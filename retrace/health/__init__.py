"""What `retrace doctor` looks at, one subject a file; each returns what it found and changes nothing unless asked."""
