#!/usr/bin/env bash
# Trains on this machine, one process a rank. Further arguments go to `resrep train`:
#
#   RANKS=4 CONFIG=configs/digits_resnet20.yaml WORKDIR=runs/digits bash launch/local.sh --set train.num_epochs=40
#
# RANKS    how many (default 2)
# CONFIG   the experiment (default configs/digits_resnet20.yaml); paths count from the repository's root
# WORKDIR  the run's folder (default runs/ and the config's name); the same folder again means resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh

CONFIG=${CONFIG:-configs/digits_resnet20.yaml}
WORKDIR=${WORKDIR:-runs/$(basename "$CONFIG" .yaml)}
unset RESREP_TERMINAL
if [[ -t 1 ]]; then # rank 0 draws its progress bar there; inside $( ) descriptor 1 is a pipe, hence 3
    exec 3>&1
    if terminal=$(tty <&3); then export RESREP_TERMINAL=$terminal; fi
    exec 3>&-
fi

# horovodrun writes its whole environment on its workers' command lines, where anyone on the machine can
# read it. So it is started with these variables and no others.
keep=("PATH=$PWD/.venv/bin:$PATH" TF_CPP_MIN_LOG_LEVEL=2)
for name in HOME LANG TERM TMPDIR LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES "${!RESREP_@}"; do
    if [[ -v $name ]]; then keep+=("$name=${!name}"); fi
done
exec env -i "${keep[@]}" \
    horovodrun --gloo -np "${RANKS:-2}" resrep train "$CONFIG" --workdir "$WORKDIR" "$@"
