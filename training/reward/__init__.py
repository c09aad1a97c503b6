"""What a candidate is worth in a request: P(target behavior) and the value then, by ordinary rankers."""
