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
for name in HOME LANG TERM TMPDIR LD_LIBRARY_PATH PYTHONPATH CUDA_VISIBLE_DEVICES "${!RESREP_@}"; do
    if [[ -v $name ]]; then keep+=("$name=${!name}"); fi
done
# horovodrun kills its ranks seconds after a signal, too soon for a checkpoint. So it gets none: the first signal
# to this script (Ctrl-C, SIGTERM, SIGUSR1) becomes a file that the ranks look for, the second one ends all.
asked=
stop() {
    if [[ $asked ]]; then kill -TERM -- "-$ranks"; return; fi
    asked=1
    mkdir -p "$WORKDIR"
    touch "$WORKDIR/stop"
    echo 'local.sh: stopping after a checkpoint; a second signal stops at once' >&2
}
trap stop INT TERM USR1
setsid env -i "${keep[@]}" \
    horovodrun --gloo -np "${RANKS:-2}" resrep train "$CONFIG" --workdir "$WORKDIR" "$@" &
ranks=$!
wait "$ranks" && code=0 || code=$?
while kill -0 "$ranks" 2>/dev/null; do wait "$ranks" && code=0 || code=$?; done
if [[ $asked && $code -ne 0 ]]; then code=143; fi
exit "$code"
