"""The store of the index: one LMDB file, and all that is written to it."""
