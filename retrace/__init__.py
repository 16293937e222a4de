"""Retrace: every model version tied to the exact data, code, parameters and environment that made it."""
