"""Ranking quality on held-out weeks, beside baselines."""
