"""What the tokenizer's embedders and quantizers are worth, and what a re-fit costs a model."""
