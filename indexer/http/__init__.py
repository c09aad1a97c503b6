"""The HTTP API of the sidecar."""
