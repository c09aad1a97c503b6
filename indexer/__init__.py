"""The writer of the semantic-ID index."""
