"""Vector -> codes, coarse to fine."""
