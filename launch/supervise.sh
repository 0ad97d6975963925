#!/usr/bin/env bash
# launch/local.sh, started again from the newest checkpoint whenever a fault has ended it. Same variables and
# arguments, and
#
#   MAX_RESTARTS=20 FEWER_RANKS=1 RANKS=4 bash launch/supervise.sh --set train.num_epochs=40
#
# MAX_RESTARTS  how often at most (default 10)
# FEWER_RANKS   1: after a rank is lost go on with one rank less, down to one; 0, the default: with as many as before.
#               The batch is global, so neither batches nor learning rate change with the number of ranks.
#
# With HOSTS the launcher makes 1 of every code, so all but 0, 130 and 143 count as faults, and FEWER_RANKS does nothing.
# A fault is: a lost rank (8), a stalled one (7), ranks that disagree (3), whatever has no code of ours.
# No fault: the end (0), refused input (2), a failed proof (4), loss not finite (5), no room for checkpoints (6),
# what --strict refuses (9, 10), a wish to stop (130, 143).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RANKS=${RANKS:-2}

asked=
stop() { # the same wish for local.sh, which makes a checkpoint of it
    asked=1 interrupted=1
    kill -TERM "$job" 2>/dev/null || true
}
trap stop INT TERM USR1

for ((restart = 0; ; restart++)); do
    # Its own session: Ctrl-C would reach it a second time otherwise, and the second one ends at once.
    setsid bash launch/local.sh "$@" &
    job=$!
    interrupted=1
    while [[ $interrupted ]]; do # by a signal, whose number `wait` then gives, whether the job has ended or not
        interrupted=
        wait "$job" && status=0 || status=$?
        if [[ $status != 127 ]]; then code=$status; fi # 127: it was waited for before
    done
    if [[ $asked ]]; then exit "$code"; fi
    case $code in
        0 | 2 | 4 | 5 | 6 | 9 | 10 | 130 | 143) exit "$code" ;;
        8) if [[ ${FEWER_RANKS:-0} == 1 ]] && ((RANKS > 1)); then RANKS=$((RANKS - 1)); fi ;;
    esac
    if ((restart >= ${MAX_RESTARTS:-10})); then
        echo "supervise.sh: ended with code $code after $restart restarts, MAX_RESTARTS; giving up" >&2
        exit "$code"
    fi
    echo "supervise.sh: ended with code $code; restart $((restart + 1)) on $RANKS rank(s)" >&2
done
