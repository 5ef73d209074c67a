#!/bin/sh
# The whole book at the real model's size, on one machine with a GPU and no network: four variants trained, four pairs
# patched, every chapter. Neither a kernel nor a workflow is needed, only Python 3.12 with torch 2.11 or later, CUDA,
# transformers 5.17 or later, accelerate, matplotlib, pandas, pyarrow, pyyaml, scikit-learn, scipy, statsmodels, typer,
# and these wheels beside them (pip download --no-deps --only-binary=:all: --python-version 3.12 NAME==VERSION):
#   annotated-types 0.8.0 · asttokens 3.0.2 · datasets 5.2.0 · dill 0.4.1 · executing 2.3.0 · greenlet 3.5.6 ·
#   ipython 9.18.1 · ipython_pygments_lexers 1.1.1 · jedi 0.20.1 · matplotlib-inline 0.2.2 · more-itertools 11.2.1 ·
#   multiprocess 0.70.19 · nnsight 0.8.1 · parso 0.8.7 · peft 0.21.0 · pexpect 4.9.0 · prompt_toolkit 3.0.53 ·
#   ptyprocess 0.7.0 · pure_eval 0.2.4 · pydantic 2.14.3 · pydantic_core 2.50.4 · stack-data 0.6.3 · traitlets 5.16.1 ·
#   trl 1.12.0 · typing-inspection 0.4.5 · wcwidth 0.9.4 · websocket-client 1.9.2 · zstandard 0.25.0
#
#   benchmarks/rehearsal.sh [--out FOLDER]                    at most 8 minutes on an H200
#   benchmarks/rehearsal.sh --tiny [--out FOLDER]             the same steps on a CPU with a small growth
#
# PYTHON names another interpreter than python3. It prints one line a step and ends with status 0 if all passed.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" benchmarks/rehearsal.py "$@"
