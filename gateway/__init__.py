"""A KServe v2 front end for Triton: HTTP in, checked within bounds, gRPC out."""
