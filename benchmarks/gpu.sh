#!/bin/sh
# How fast the real size is on this machine's GPU: a sweep of 3,510 patches with all controls, training with the study's
# settings and with the book's batch, and what a whole study would take by arithmetic. At most 4 minutes on an H200.
# What must be installed stands at the top of rehearsal.sh; no network is needed.
#
#   benchmarks/gpu.sh [--base FOLDER] [--rehearsal FOLDER]   a grown base that is there; the book's time from a rehearsal
#   benchmarks/gpu.sh --tiny                                 the same steps on a CPU with a small growth
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TQDM_DISABLE=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
