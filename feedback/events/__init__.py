"""Feedback and served records, read from bytes that nobody has checked before."""
