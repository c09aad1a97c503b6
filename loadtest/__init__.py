"""Load tests of a served model (run.py) and of its load control."""
