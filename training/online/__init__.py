"""Learning from what is served: samples in order, each once, between checkpoints that can be published."""
