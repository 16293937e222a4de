"""Measurements of Retrace against what it stands on; see README.md here."""
