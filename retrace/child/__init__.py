"""DVC's work on one workspace, in a process of its own: `python -m retrace.child`, started by `retrace.process`."""
