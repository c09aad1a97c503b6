"""Presets: a section a concern, and all of them checked together."""
