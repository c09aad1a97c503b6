"""Everything that learns: data, tokenizer, model, objectives and the loop that trains (PyTorch)."""
