"""What the adapters of the Triton models share. Tensors in, a call, tensors out."""
