"""The loop from weights that are ready to answers by them, measured."""
