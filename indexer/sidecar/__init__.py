"""The running sidecar: a queue, the writer thread behind it, and its chores."""
