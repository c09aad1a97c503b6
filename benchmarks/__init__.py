"""Measurements: one command, one table."""
