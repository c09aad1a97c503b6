"""The generator: context processor, LazyAR decoder, heads, and its split into prefix and tails."""
