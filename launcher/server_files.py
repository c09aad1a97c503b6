"""Finds the files of a Triton server: those of the nvidia-pytriton wheel, or an installed `tritonserver`.

The wheel carries NVIDIA's own binary with the Python backend, but cannot be used where pip put it: the stub
that runs `model.py` lies in another folder than the backend looks in. So the few files are copied once to a
writable folder, laid out as the server expects them.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from serving.files import new_folder

_STUB = "triton_python_backend_stub"


class ServerError(RuntimeError):
    """The Triton server cannot be found, did not start, or died; the text says why."""


@dataclass(frozen=True)
class ServerFiles:
    """Where one Triton server's files are.

    Attributes:
        binary: The `tritonserver` executable.
        version: What the files come from, e.g. `nvidia-pytriton-0.7.0-py3.11`.
        backend_directory: Folder with `python/libtriton_python.so`; None leaves the server its own default.
        cache_directory: Folder with `local/libtritoncache_local.so`; None as above.
        library_path: Folders to put first in `LD_LIBRARY_PATH`.
        has_gpu_metrics: False for the wheel, whose DCGM complains on machines without a GPU.
    """

    binary: Path
    version: str
    backend_directory: Path | None = None
    cache_directory: Path | None = None
    library_path: tuple[Path, ...] = ()
    has_gpu_metrics: bool = False


def prepare_server(cache_dir: Path, *, tritonserver: str | Path | None = None) -> ServerFiles:
    """Returns a server that can be started, copying the wheel's files on the first call.

    Args:
        cache_dir: Writable folder; the copy goes to `<cache_dir>/<wheel version and Python version>`.
        tritonserver: Path or name in PATH of an installed server (as in NVIDIA's container), used instead of
            the wheel. When it is None, the wheel is taken, and without a wheel a `tritonserver` in PATH.

    Raises:
        ServerError: There is no server, or the wheel has no stub for the running Python.
    """
    if tritonserver is not None:
        return _installed_server(str(tritonserver))
    spec = util.find_spec("pytriton")  # finds the folder without importing PyTriton, whose API is not used
    if spec is not None and spec.submodule_search_locations:
        return _wheel_server(Path(spec.submodule_search_locations[0]), cache_dir)
    if shutil.which("tritonserver"):
        return _installed_server("tritonserver")
    raise ServerError(
        f"no Triton server: {sys.executable} has no package nvidia-pytriton (installed by `make setup`), "
        "there is no `tritonserver` in PATH, and none was named with --tritonserver"
    )


def _installed_server(name: str) -> ServerFiles:
    found = shutil.which(name)
    if found is None:
        raise ServerError(f"no executable Triton server at {name!r}, neither as a path nor in PATH")
    return ServerFiles(binary=Path(found), version=str(Path(found).resolve()), has_gpu_metrics=True)


def _wheel_server(package: Path, cache_dir: Path) -> ServerFiles:
    source = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = source / "python_backend_stubs" / python / _STUB
    if not stub.is_file():
        known = sorted(path.name for path in (source / "python_backend_stubs").glob("3.*"))
        raise ServerError(f"nvidia-pytriton at {package} has no stub for Python {python}, only for {known}")
    version = f"nvidia-pytriton-{metadata.version('nvidia-pytriton')}-py{python}"
    target = cache_dir.resolve() / version
    if not target.is_dir():
        _copy_once(source, stub, target)
    libraries = package.parent / "nvidia_pytriton.libs"
    # The stub embeds Python: it needs libpython of this interpreter and the CUDA runtime of the wheel.
    return ServerFiles(
        binary=target / "bin" / "tritonserver",
        version=version,
        backend_directory=target / "backends",
        cache_directory=target / "caches",
        library_path=(libraries, Path(sysconfig.get_config_var("LIBDIR"))),
    )


def _copy_once(source: Path, stub: Path, target: Path) -> None:
    """Copies whole or not at all; of several processes that want it, one does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return
        with new_folder(target) as work:
            for folder in ("bin", "backends", "caches"):
                shutil.copytree(source / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy2(stub, work / "backends" / "python" / _STUB)
            for executable in (work / "bin" / "tritonserver", work / "backends" / "python" / _STUB):
                executable.chmod(0o755)
