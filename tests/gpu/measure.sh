#!/usr/bin/env bash
# What one GPU shows, in nine minutes at most. Each part is bounded and writes a line into FOLDER/results.jsonl when it
# ends, so that what was measured stays if the machine is taken away.
#
#   bash tests/gpu/measure.sh [FOLDER]
#
# FOLDER   for results and logs (default measured)
# PYTHON   with TensorFlow for GPUs, and Horovod with NCCL (default .venv/bin/python)
# PARTS    which parts (default those of nine minutes). Others: mixed_bfloat16 free xla costs, thirteen minutes
# SMALL=1  a rehearsal on a CPU: a small network in place of ResNet-50 at 224 px, and Gloo in place of NCCL
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
folder=${1:-measured}
python=${PYTHON:-.venv/bin/python}
parts=${PARTS:-tests ranks resumed demo float32 rounded mixed_float16 rounded_float16 gaps}
mkdir -p "$folder"

part() { # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    if [[ " $parts " != *" $name "* ]]; then return; fi
    timeout --kill-after=5 "$limit" "$@" >"$folder/$name.log" 2>&1
    code=$?
    python3 tests/gpu/record.py "$folder" "$name" "$code" "$((SECONDS - start))" "$limit"
}

config=configs/resnet50_imagenet.yaml size=(--num-steps 10 --num-rounds 3)
# Noise: the input is measured by `resrep benchmark data`.
data=(data.source=synthetic data.path=null data.global_batch_size=128) demo=configs/digits_resnet20.yaml
costs=(--model resnet50 --image-size 224)
if [[ ${SMALL:-} ]]; then
    config=configs/digits_resnet20.yaml size=(--num-steps 1 --num-rounds 1) data=(data.global_batch_size=8) demo=tests/faults/config.yaml
    costs=(--model resnet20 --image-size 32)
fi

steps() { # name, limit in seconds, arms, settings
    local name=$1 limit=$2 arms=$3 setting options=()
    shift 3
    for setting in "${data[@]}" "$@"; do options+=(--set "$setting"); done
    part "$name" "$limit" "$python" -m resrep_dist benchmark steps "$config" "${size[@]}" "${options[@]}" \
        --arms "$arms" --output "$folder/$name"
}

# Two ranks share the GPU, which NCCL allows from 2.30 on.
export NCCL_MULTI_RANK_GPU_ENABLE=1 TF_FORCE_GPU_ALLOW_GROWTH=true
# Most of the time of these the host starts programs, so they run at once.
part tests 150 "$python" -m pytest -q -m gpu tests/system/test_gpu.py &
part ranks 105 "$python" -m tests.gpu.two_ranks "$folder/ranks" &
part resumed 105 "$python" -m tests.gpu.resumed "$folder/resumed" &
part demo 105 "$python" -m resrep_dist train "$demo" --workdir "$folder/demo" --quiet &
wait
full=stock_horovod,plain,resrep
steps float32 85 $full,slim
steps rounded 60 plain,slim prune.round_to=8
steps mixed_float16 120 $full,slim training.precision=mixed_float16
steps rounded_float16 60 plain,slim prune.round_to=8 training.precision=mixed_float16
part gaps 40 "$python" -m tests.gpu.host_gaps "$folder/gaps" "$config" "${data[@]}"
# Longer ones.
steps mixed_bfloat16 120 $full training.precision=mixed_bfloat16
steps free 120 plain,resrep training.deterministic=false
# Trying algorithms and compiling take most of the time. XLA has no deterministic gradient of max pooling.
steps xla 180 plain,resrep training.xla=true training.deterministic=false
# Does a table of times lead to a faster model here than multiply-adds do?
part costs 300 "$python" -m tests.quality.same_macs --runtime keras --batch 32 "${costs[@]}" --folder "$folder/costs"
cat "$folder/results.jsonl"
