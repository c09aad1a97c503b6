"""Faults brought about on purpose, and what they cost: failed requests, seconds to recovery, what was lost."""
