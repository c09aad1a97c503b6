"""Judges from elsewhere, in a virtual environment of their own: `make simulate-outside`."""
