"""Commands of `python -m indexer`, a module a group; each has `add(commands)`."""
