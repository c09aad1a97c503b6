"""Everything that learns: data, tokenizer, model, objectives and reward (PyTorch)."""
