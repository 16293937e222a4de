"""A person's request to be forgotten: what it costs, and how it is carried out. `retrace.forget` is the command."""
