#!/usr/bin/env bash
# What one GPU shows, in eight minutes at most. Each part is bounded and writes a line into FOLDER/results.jsonl when it
# ends, so that what was measured stays if the machine is taken away.
#
#   bash tests/gpu/measure.sh [FOLDER]
#
# FOLDER   for results and logs (default measured)
# PYTHON   with TensorFlow for GPUs, and Horovod with NCCL (default .venv/bin/python)
# PARTS    some of: tests ranks float32 mixed_float16 mixed_bfloat16 xla free demo (default all)
# SMALL=1  a rehearsal on a CPU: a small network in place of ResNet-50 at 224 px, and Gloo in place of NCCL
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
folder=${1:-measured}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

part() { # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    if [[ " ${PARTS:-$name} " != *" $name "* ]]; then return; fi
    timeout --kill-after=5 "$limit" "$@" >"$folder/$name.log" 2>&1
    code=$?
    python3 tests/gpu/record.py "$folder" "$name" "$code" "$((SECONDS - start))" "$limit"
}

steps() { # name, limit in seconds, settings
    local name=$1 limit=$2 size=(--set data.global_batch_size=128 --num-steps 10 --num-rounds 3)
    local config=configs/resnet50_imagenet.yaml
    shift 2
    if [[ ${SMALL:-} ]]; then
        config=configs/digits_resnet20.yaml size=(--set data.global_batch_size=8 --num-steps 1 --num-rounds 1)
    else
        # Noise: the input is measured by `resrep benchmark data`.
        set -- data.source=synthetic data.path=null "$@"
    fi
    local setting options=()
    for setting in "$@"; do options+=(--set "$setting"); done
    part "$name" "$limit" "$python" -m resrep_dist benchmark steps "$config" "${size[@]}" "${options[@]}" \
        --arms stock_horovod,plain,resrep,slim --output "$folder/$name"
}

# Two ranks share the GPU, which NCCL allows from 2.30 on.
export NCCL_MULTI_RANK_GPU_ENABLE=1 TF_FORCE_GPU_ALLOW_GROWTH=true
part tests 80 "$python" -m pytest -q -m gpu tests/system/test_gpu.py
part ranks 90 "$python" -m tests.gpu.two_ranks "$folder/ranks"
steps float32 70
steps mixed_float16 50 training.precision=mixed_float16
steps mixed_bfloat16 50 training.precision=mixed_bfloat16
steps xla 60 training.xla=true
steps free 50 training.deterministic=false
part demo 30 "$python" -m resrep_dist train configs/digits_resnet20.yaml --workdir "$folder/demo" --quiet \
    --set train.num_epochs=${SMALL:+0.}5 --set base.num_epochs=1
cat "$folder/results.jsonl"
