"""`make bench-index`: how fresh, how safe and how large the live index is."""
