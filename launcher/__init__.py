"""Starts and watches a Triton server: the command `python -m launcher`, `TritonServer` for scripts.

`launcher.indexer_process` starts the sidecar.
"""

from launcher.server_files import ServerError, ServerFiles, prepare_server
from launcher.triton_command import HOME
from launcher.triton_server import DEFAULT_CACHE, TritonServer

__all__ = ["DEFAULT_CACHE", "HOME", "ServerError", "ServerFiles", "TritonServer", "prepare_server"]
