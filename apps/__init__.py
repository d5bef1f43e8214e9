"""Programs: `python -m ml2hpc.apps.<name>`."""
