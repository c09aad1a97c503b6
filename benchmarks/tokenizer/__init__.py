"""What the tokenizer gives: measures over seeds, each with the command that makes it."""
