"""Texts of ads -> vectors, as both the tokenizer that is fitted and the encoder of new ads need them."""
