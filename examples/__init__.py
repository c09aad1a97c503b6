"""Programs a user starts from."""
