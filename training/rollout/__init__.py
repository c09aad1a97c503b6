"""What the model would answer: the serving beam search on models in PyTorch."""
