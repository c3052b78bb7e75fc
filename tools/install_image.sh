#!/usr/bin/env bash
# The Dockerfile's only step, alike with and without CUDA: system packages, a user, and the tested versions in /opt/venv.
# usage: install_image.sh INDEX_OF_TORCH
set -euo pipefail
cd "$(dirname "$0")"
apt-get update
# g++ and Python's headers: torch.compile and DeepSpeed build kernels where they run
apt-get install --yes --no-install-recommends ca-certificates g++ git python3-dev python3-venv
rm -rf /var/lib/apt/lists/*
useradd --create-home --uid 1001 flow
install --directory --owner flow --group flow /home/flow/flow-factory
python3 -m venv /opt/venv
export PIP_NO_CACHE_DIR=1
/opt/venv/bin/pip install --index-url "$1" "$(grep '^torch==' constraints.txt)"
/opt/venv/bin/pip install -c constraints.txt .
