"""Faults brought about on purpose, and what they cost: failed requests, time to recovery, what was lost."""
