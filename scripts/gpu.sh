#!/usr/bin/env bash
# Everything that a GPU must show, in one call of at most nine minutes.
#
#   scripts/gpu.sh DATA [OUT] [more options of python -m expunge_bench.gpu]
#
#   DATA  a folder with cifar10/train.parquet and cifar10/test.parquet, or these two files
#   OUT   gets rows.jsonl, table.md and log.txt, written after every row (default: $OUT or build/gpu/out)
#
# Needs torch with CUDA and the dependencies of expunge; expunge itself need not be installed. Wheels
# in build/gpu-wheels (torch-pruning, cleanlab) are installed into build/gpu-site if they are missing.
# Fetch them before: pip download --no-deps --dest build/gpu-wheels torch-pruning cleanlab termcolor
# A second call resumes: build/gpu/work keeps what is done.
# Order: probe of CUDA graphs, speed of scoring, then side by side the published protocol
# (60 epochs), human labels, memorised labels, the tests and the demo.
# On a CPU, as in the tests: scripts/gpu.sh DATA OUT --small --seconds 60
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: scripts/gpu.sh DATA [OUT] [options]}
out=${2:-${OUT:-build/gpu/out}}
shift $(($# < 2 ? $# : 2))
[ -d "$data/cifar10" ] && data=$data/cifar10
python=${PYTHON:-python3}
if [ -d build/gpu-wheels ]; then
    "$python" -m pip install --quiet --no-index --no-deps --find-links build/gpu-wheels \
        --target build/gpu-site build/gpu-wheels/*.whl || true
fi
export PYTHONPATH="$PWD/src:$PWD/benchmarks/src:${PYTHONPATH:-}:$PWD/build/gpu-site"
exec "$python" -m expunge_bench.gpu --data "$data" --out "$out" --work build/gpu/work "$@"
