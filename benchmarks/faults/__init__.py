"""Faults that a deployment must survive, done on purpose; and traffic that tells what they did."""
