"""The request path: features, index reader, beam search, executors. No torch, no Triton import."""
