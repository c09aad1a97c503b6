"""Semantic-ID index as the request path reads it: LMDB layout, immutable snapshots, children look-ups."""
