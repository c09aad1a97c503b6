"""What the tokenizer's embedders and quantizers are worth."""
