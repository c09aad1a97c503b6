"""Faults done to a running deployment, and what its users saw of them: `make bench-faults`."""
