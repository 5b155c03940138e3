#!/usr/bin/env bash
# The GPU benchmark on one H100 or H200, about 8 minutes: benchmarks/gpu.sh [FILE]; writes FILE.json, FILE.md,
# FILE.trace.json and FILE.kernels.json.  Needs a CUDA build of torch and this project installed with [benchmarks].
set -euo pipefail
cd "$(dirname "$0")/.."
to=${1:-outputs/gpu_benchmark}
python=${PYTHON:-python}
mkdir -p "$(dirname "$to")"
nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv
exec timeout 480 "$python" -m benchmarks gpu rounds=5 to="$to"
