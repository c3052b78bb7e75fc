#!/usr/bin/env bash
# The tests on a GPU, then the benchmark, within 15 minutes; what they say is left in a folder.
#
#     bash benchmarks/gpu.sh FOLDER          PYTHON, TESTS and MINUTES choose the interpreter, and how long each part may take
set -u
out=$(realpath -m "${1:?the folder for the figures}")
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

{ nvidia-smi || true; "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available() and torch.cuda.get_device_name())'; } \
    > "$out/machine.txt" 2>&1
timeout -k 10 "${TESTS:-200}" "$python" -m pytest -m gpu -n 4 --dist worksteal --durations=20 tests/gpu > "$out/tests.txt" 2>&1
echo "tests: exit code $?" | tee -a "$out/tests.txt"
minutes=${MINUTES:-10}
timeout -k 10 "$((60 * minutes + 30))" "$python" benchmarks/gpu.py --minutes "$minutes" --log "$out/log.txt" > "$out/gpu.jsonl" 2> "$out/gpu.err"
echo "benchmark: exit code $?, $(wc -l < "$out/gpu.jsonl") lines in $out/gpu.jsonl"
