#!/usr/bin/env bash
# Everything that needs a GPU, in one command: engines, parity, beams, a latency table, and a server with TensorRT.
# Run it inside the Triton container whose TensorRT will serve, in a checkout:
#   docker run --rm --gpus all -v "$PWD:/opt/gr4ad" -w /opt/gr4ad nvcr.io/nvidia/tritonserver:26.04-py3 deploy/gpu_check.sh
# Writes build/gpu/: latency.json, check.log. With a trained demo (build/demo) it also serves that model in FP8.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/gpu
exec > >(tee build/gpu/check.log) 2>&1

command -v nvidia-smi >/dev/null || { echo "expected nvidia-smi, found none: start the container with --gpus all" >&2; exit 1; }
nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv
version=$(dpkg-query -W -f '${Version}' 'libnvinfer[0-9]*' 2>/dev/null | head -n 1 | cut -d- -f1)
[ -n "$version" ] || { echo "expected TensorRT (libnvinfer) in this container, found none: use a Triton image" >&2; exit 1; }
echo "TensorRT of this container: $version"

VENV=build/gpu/venv
python="$VENV/bin/python"
make setup precision-setup VENV="$VENV" PYTHON=python3
cuda=$(nvidia-smi | sed -nE 's/.*CUDA Version: ([0-9]+).*/\1/p')
"$python" -m pip install --quiet "tensorrt-cu${cuda}==${version}.*" "cupy-cuda${cuda}x==13.6.0" "numpy<2"

"$python" -m pytest tests/gpu -q -rs
cat build/gpu/latency.json

if [ -d build/demo/model/checkpoint ]; then
    "$python" -m export --config configs/demo.yaml --run build/demo --target tensorrt --precision fp8 \
        --repository build/gpu/model_repository
    # The adapters look for packages in GR4AD_HOME/.venv; the checkout's own may be of another Python.
    home="$PWD/build/gpu/home"
    rm -rf "$home" && mkdir "$home"
    ln -s "$PWD/serving" "$PWD/build" "$home/" && ln -s "$PWD/$VENV" "$home/.venv"
    GR4AD_HOME="$home" tritonserver --model-repository=build/gpu/model_repository \
        --model-control-mode=explicit --load-model='*' --strict-readiness=false --disable-auto-complete-config \
        --http-address=127.0.0.1 --grpc-address=127.0.0.1 > build/gpu/triton.log 2>&1 &
    server=$!
    trap 'kill "$server" 2>/dev/null || true' EXIT
    for _ in $(seq 120); do
        curl --fail --silent http://127.0.0.1:8000/v2/models/gr4ad/ready && break
        kill -0 "$server" || { tail -n 40 build/gpu/triton.log; exit 1; }
        sleep 1
    done
    "$python" -m examples.request --run build/demo --url 127.0.0.1:8001
fi
echo "all checks passed"
