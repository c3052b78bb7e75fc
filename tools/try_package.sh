#!/usr/bin/env bash
# `make package`: builds the sdist and the wheel into build/dist and tries them as a stranger would. The wheel is installed into an empty
# environment and started in the unpacked sdist without its package, so that nothing but the wheel can be imported.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$PWD/build/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$dist"

"${PYTHON:-python3}" -m venv "$work/venv"
bin=$work/venv/bin
"$bin/pip" install --quiet build
"$bin/python" -m build --outdir "$dist" .
"$bin/pip" install --quiet -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
wheel=$(ls "$dist"/*.whl)
"$bin/pip" install --quiet -c constraints.txt "$wheel"
"$bin/pip" check

tar -xzf "$dist"/*.tar.gz -C "$work"
cd "$work"/flow_factory-*/
unset PYTHONPATH
export HF_HUB_OFFLINE=1
mv flow_factory "$work/sources"
"$bin/ff-train" examples/quickstart.yaml --check
"$bin/ff-train" examples/quickstart.yaml train.max_epochs=1 train.unique_sample_num_per_epoch=2 train.gradient_step_per_epoch=1 \
  train.lr_warmup_steps=0 data.max_dataset_size=8 data.cache_dir=cache
mv "$work/sources" flow_factory
"$bin/pip" install --quiet -c "$OLDPWD/constraints.txt" "${wheel}[test]"
"$bin/python" -m pytest -q -m 'slow or not slow' tests/commands/test_installed.py
echo "tried: $(ls "$dist")"
