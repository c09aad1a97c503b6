"""What was served: one record an answer, written off the request path, for whoever joins feedback to it."""
