"""Commands of about a page."""
