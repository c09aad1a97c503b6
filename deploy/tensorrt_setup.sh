#!/usr/bin/env bash
# Virtual environment that can build and test TensorRT engines, inside a Triton container: deploy/tensorrt_setup.sh FOLDER
# The engines' TensorRT must be exactly the server's, so its Python package is that of the container's libnvinfer.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?expected the folder of the virtual environment to make}

installed=$( (dpkg-query -W -f '${Version}\n' 'libnvinfer[0-9]*' 2>/dev/null || true) | head -n 1)
version=$(sed -E 's/-.*//' <<< "$installed")
cuda=$(sed -nE 's/.*\+cuda([0-9]+).*/\1/p' <<< "$installed")
if [ -z "$version" ] || [ -z "$cuda" ]; then
    echo "expected TensorRT in this container (package libnvinfer, version ..+cuda..), found '${installed:-none}'" >&2
    exit 1
fi
echo "TensorRT of this container: $version for CUDA $cuda"

export PIP_CONSTRAINT=""
# --without-pip: Ubuntu's Python has no ensurepip; the container's pip installs into the new environment.
[ -x "$venv/bin/python" ] || python3 -m venv --without-pip "$venv"
install() { python3 -m pip --python "$venv/bin/python" install --quiet "$@"; }
install --no-deps -r requirements.lock
install "torch==2.13.0"
install --no-deps -r requirements-precision.txt
install "tensorrt-cu${cuda}==${version}.*" "cupy-cuda${cuda}x==13.6.0" "numpy<2"
