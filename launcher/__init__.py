"""Starts and watches servers: the command `python -m launcher`, `launcher.triton_server` for scripts.

`launcher.indexer_process` starts the sidecar.
"""
