#!/usr/bin/env bash
# Everything that needs a GPU, in one command: engines, parity, beams, a latency table, and a server with TensorRT.
# Run it inside the Triton container whose TensorRT will serve, in a checkout:
#   docker run --rm --gpus all --shm-size=1g -v "$PWD:/opt/gr4ad" -w /opt/gr4ad \
#       nvcr.io/nvidia/tritonserver:26.09-py3 deploy/gpu_check.sh
# Writes build/gpu/ only: latency.json, check.log. With a demo (make demo) it also serves that model in FP8.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/gpu
exec > >(tee build/gpu/check.log) 2>&1

if ! command -v nvidia-smi > /dev/null; then
    echo "expected nvidia-smi, found none: start the container with --gpus all" >&2
    exit 1
fi
nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv
venv=$PWD/build/gpu/venv
deploy/tensorrt_setup.sh "$venv"
python=$venv/bin/python

rm -f build/gpu/latency.json
GR4AD_REQUIRE_GPU=1 "$python" -m pytest tests/gpu -q -rs
cat build/gpu/latency.json

missing=""
for part in data tokenizer model index; do
    [ -e "build/demo/$part" ] || missing="$missing build/demo/$part"
done
if [ -n "$missing" ]; then
    echo "engines checked; no server was started: expected$missing, found none (make demo)"
    exit 0
fi
# A run of its own: what build/demo serves stays as it is.
run=build/gpu/run
mkdir -p "$run"
for part in data tokenizer model index; do
    ln -sfn "$PWD/build/demo/$part" "$run/$part"
done
"$python" -m export --config configs/demo.yaml --run "$run" --target tensorrt --precision fp8 \
    --repository build/gpu/model_repository
# The adapters look for packages in GR4AD_HOME/.venv; the checkout's own may be of another Python.
home=$PWD/build/gpu/home
rm -rf "$home" && mkdir "$home"
ln -s "$PWD/serving" "$PWD/build" "$home/" && ln -s "$venv" "$home/.venv"
export GR4AD_HOME=$home PATH="$venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
export GR4AD_RUN_FILE=$PWD/build/gpu/server.json
"$python" -m launcher --tritonserver "$(command -v tritonserver)" --repository build/gpu/model_repository \
    --log build/gpu/triton.log --timeout 900 --detach
trap '"$python" -m launcher --stop' EXIT
"$python" -m examples.request --run "$run" --url 127.0.0.1:8001
if grep -E "pass through host memory|unable to record CUDA graph|[Ff]ailed to set .*[Gg]raph" build/gpu/triton.log; then
    echo "the server answers, but not as configured: see the lines above of build/gpu/triton.log" >&2
    exit 1
fi
echo "all checks passed"
