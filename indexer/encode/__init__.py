"""Semantic IDs of ads, from their content."""
