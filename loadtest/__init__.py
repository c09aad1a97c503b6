"""Load on a running server, and a simulator of it."""
