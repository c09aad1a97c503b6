"""The last step of an answer: ads of the surviving beams, ordered by a ranker that the bundle brings."""
