"""What a tokenizer gives, measured and drawn: python -m training.tokenizer report."""
