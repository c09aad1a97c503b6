"""The process around the join: sources, the thread that writes, metrics."""
