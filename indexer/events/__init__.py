"""What can happen to an ad: the events, and how they are read from JSON that nobody has checked before."""
