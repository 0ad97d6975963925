# shellcheck shell=bash
# What the launch scripts have in common; they source it in the repository's root. It takes
#
#   CONFIG   the experiment (default configs/digits_resnet20.yaml); paths count from the repository's root
#   WORKDIR  the run's folder (default runs/ and the config's name); the same folder again means resume
#   PASS     names of further variables that the ranks get, as in "XLA_FLAGS UCX_TLS"
#
# and gives `names`, the variables that the ranks get besides PATH, and `start_ranks`, which does not return. mpirun
# and srun themselves also get OMPI_* and SLURM_*, so `OMPI_MCA_plm_rsh_args="-p 2222"` is an option of mpirun.
CONFIG=${CONFIG:-configs/digits_resnet20.yaml}
WORKDIR=${WORKDIR:-runs/$(basename "$CONFIG" .yaml)}
script=${script:-$(basename "$0")}

# Horovod's and NCCL's settings, for every launcher. Ranks that wait while rank 0 merges are not stalled, so Horovod
# only warns of them. NCCL says what goes wrong, no more; NCCL_SOCKET_IFNAME, NCCL_IB_HCA and others go along if set.
export HOROVOD_STALL_CHECK_TIME_SECONDS=${HOROVOD_STALL_CHECK_TIME_SECONDS:-300}
export HOROVOD_STALL_SHUTDOWN_TIME_SECONDS=0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

# The file `stop` belongs to the job that holds the folder, and that may be another one. So a signal to this script
# becomes a file with a name of its own; hidden, since a folder with no other files still counts as empty. A file `stop`
# from before the start of this script, set-up included, was meant for an earlier run.
RESREP_START_TIME=$(($(date +%s) - SECONDS))
RESREP_STOP=.stop-$(uname -n)-$$-$RESREP_START_TIME
export RESREP_START_TIME RESREP_STOP
unset RESREP_TERMINAL
first_host=${HOSTS:-localhost}
own_names=" localhost 127.0.0.1 $(uname -n) $(hostname -s 2>/dev/null || true) $(hostname -I 2>/dev/null || true) "
is_elsewhere= # after `salloc` this shell is beside the job, and the ranks run on its nodes
if [[ ${SLURM_JOB_ID:-} && ! ${SLURMD_NODENAME:-} ]]; then is_elsewhere=1; fi
# Rank 0 draws its progress bar there, if it is on this machine. Inside $( ) descriptor 1 is a pipe, hence 3.
if [[ -t 1 && ! $is_elsewhere && $own_names == *" ${first_host%%[:,]*} "* ]]; then
    exec 3>&1
    if terminal=$(tty <&3); then export RESREP_TERMINAL=$terminal; fi
    exec 3>&-
fi

# horovodrun and mpirun return 1 whatever the ranks returned. On one machine these write their codes into this file.
if [[ ! ${HOSTS:-} && ${SLURM_JOB_NUM_NODES:-1} == 1 && ! $is_elsewhere && $script != slurm* ]]; then
    RESREP_EXIT_CODES=$(mktemp)
    export RESREP_EXIT_CODES
    trap 'rm -f "$RESREP_EXIT_CODES"' EXIT
fi

# Launchers hand the whole environment on, horovodrun even on its workers' command lines, where anyone on the
# machine can read it. So they are started with these variables and no others.
names=()
for name in HOME LANG TERM TMPDIR LD_LIBRARY_PATH PYTHONPATH CUDA_VISIBLE_DEVICES SSH_AUTH_SOCK TF_CPP_MIN_LOG_LEVEL \
    ${PASS:-} "${!RESREP_@}" "${!HOROVOD_@}" "${!NCCL_@}"; do
    if [[ -v $name ]]; then names+=("$name"); fi
done

# Launchers kill their ranks seconds after a signal, too soon for a checkpoint. So they get none: the first signal
# to the script (Ctrl-C, SIGTERM, SIGUSR1) becomes a file that the ranks look for, the second one ends all.
asked=
killed=
stop() {
    if [[ $asked ]]; then killed=1; kill -TERM -- "-$ranks"; return; fi
    asked=$1
    mkdir -p "$WORKDIR"
    touch "$WORKDIR/$RESREP_STOP"
    echo "$script: $1, stopping after a checkpoint; a second signal stops at once" >&2
}

cores_of_a_rank() { # a rank's own part of the host's cores, near its GPU as ranks and GPUs are counted; 0 without GPUs
    local ranks=${RANKS:-2} cores
    if [[ ${HOSTS:-} =~ ^[^,]*:([0-9]+) ]]; then ranks=${BASH_REMATCH[1]}; fi
    cores=$(lscpu --parse=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
    if [[ ! ${SLURM_JOB_ID:-} ]] && ((cores >= ranks)) && nvidia-smi --list-gpus >/dev/null 2>&1; then
        echo $((cores / ranks))
    else
        echo 0
    fi
}

# Rank 0 speaks for all, so its lines need no rank; those of others keep it. The last words of a crash pass, too. Two
# lines of TensorFlow, which horovodrun imports, go: no setting silences them (issue 100442 of TensorFlow).
without_prefixes() {
    if ! command -v sed >/dev/null; then exec cat; fi
    exec sed -u -E -e 's/^\[([^]]*[@,])?0\]<std(out|err)>: ?//' \
        -e '/^WARNING: All log messages before absl::InitializeLog/d' -e '/oneDNN custom operations are on/d'
}

start_ranks() { # the launcher's command line; the script leaves with the code of the first rank that ended by an error
    local name environment=("PATH=$PWD/.venv/bin:$PATH") own=("${!OMPI_@}" "${!SLURM_@}")
    if [[ $1 == horovodrun ]]; then own=(); fi
    for name in "${names[@]}" "${own[@]}"; do environment+=("$name=${!name}"); done
    trap 'stop INT' INT
    trap 'stop TERM' TERM
    trap 'stop USR1' USR1
    exec 4> >(without_prefixes)
    local filters=($!)
    exec 5> >(without_prefixes >&2)
    filters+=($!)
    setsid env -i "${environment[@]}" "$@" 1>&4 2>&5 4>&- 5>&- &
    ranks=$!
    local left_seconds=0
    while kill -0 "$ranks" 2>/dev/null; do
        # The launcher needs up to 10 s to end the other ranks.
        if [[ -s ${RESREP_EXIT_CODES:-} ]] && ((++left_seconds > 30)); then
            echo "$script: a rank ended 30 s ago and ${1##*/} hangs; killing it" >&2
            kill -KILL -- "-$ranks" 2>/dev/null || true
        fi
        sleep 1 &
        wait $! || true # a signal ends this wait, and the trap runs
    done
    wait "$ranks" && code=0 || code=$?
    rm -f "$WORKDIR/$RESREP_STOP" 2>/dev/null || true # refused ranks have not done it
    exec 4>&- 5>&-
    for _ in {1..20}; do # the last lines are printed before this script is left
        kill -0 "${filters[@]}" 2>/dev/null || break
        sleep 0.1
    done
    if [[ -s ${RESREP_EXIT_CODES:-} ]]; then
        read -r code <"$RESREP_EXIT_CODES"
    elif [[ $asked && $code == 1 && ! ${RESREP_EXIT_CODES:-} && $1 != srun ]]; then
        # On several hosts horovodrun and mpirun make this of every code.
        code=143
    fi
    if [[ $killed && $code -ne 0 ]]; then code=143; fi
    exit "$code"
}
