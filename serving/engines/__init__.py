"""Who runs the graphs: ONNX Runtime in this process, Triton models, with padding and timing around them."""
