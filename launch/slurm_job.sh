# shellcheck shell=bash
# What slurm.sbatch and slurm_array.sbatch have in common; they source it in the repository's root.
#
# --signal=B:USR1@180 wakes the job before its time is up: a checkpoint, and back into the queue. Where the site does
# not requeue, the job is submitted again, with this one's tasks, nodes, cores and GPUs, partition, account, QOS, time
# limit and log; other options belong into the file, as #SBATCH lines.
submitted_workdir=${WORKDIR:-}
WORKDIR=${run_folder:-$submitted_workdir}
arguments=("$@")
source launch/ranks.sh

restarts=$((${RESREP_RESTARTS:-0} + ${SLURM_RESTART_COUNT:-0}))
echo "${script:?}: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $SLURM_NTASKS tasks, SLURM_RESTART_COUNT=${SLURM_RESTART_COUNT:-0}," \
    "restart $restarts of at most ${MAX_RESTARTS:=50}, $(date '+%F %T')"
if ((SLURM_NTASKS == 2 && 2 < SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-0})); then
    echo "$script: 2 tasks, as the file says, fewer than --ntasks-per-node allows; give --ntasks as well" >&2
fi
if [[ ! -x .venv/bin/resrep ]]; then
    echo "$script: no .venv in $PWD; run \`RESREP_MPI=1 bash launch/setup.sh\` there, then submit again" >&2
    exit 2
fi

come_back() {
    if [[ ${asked:-} != USR1 || $code -ne 143 ]]; then return; fi # done, failed or canceled
    if ((restarts >= MAX_RESTARTS)); then
        echo "$script: $restarts restarts were allowed (MAX_RESTARTS); submit it again to go on" >&2
        return
    fi
    if scontrol requeue "$SLURM_JOB_ID"; then return; fi # it ends this script
    echo "$script: no requeue here; submitting it again" >&2
    local job options
    job=$(scontrol --oneliner show job "$SLURM_JOB_ID")
    field() { grep -oP " $1=\K\S+" <<<"$job"; }
    options=(--ntasks="$SLURM_NTASKS" --nodes="$SLURM_NNODES" --partition="$(field Partition)")
    options+=(--time="$(field TimeLimit)" --output="$(field StdOut)")
    local option value
    for option in cpus-per-task:SLURM_CPUS_PER_TASK ntasks-per-node:SLURM_NTASKS_PER_NODE gpus:SLURM_GPUS \
        gpus-per-node:SLURM_GPUS_PER_NODE gpus-per-task:SLURM_GPUS_PER_TASK account:Account qos:QOS; do
        value=${option#*:}
        if [[ $value == SLURM_* ]]; then value=${!value:-}; else value=$(field "$value" || true); fi
        if [[ $value && $value != "(null)" && $value != N/A ]]; then options+=("--${option%%:*}=$value"); fi
    done
    # GPUs that --gres asked for are in no variable.
    value=$(field TresPerNode || true)
    if [[ $value && ! ${SLURM_GPUS_PER_NODE:-} ]]; then options+=(--gres="${value//gres[:\/]/}"); fi
    if [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then options+=(--array="$SLURM_ARRAY_TASK_ID"); fi
    WORKDIR=$submitted_workdir RESREP_RESTARTS=$((restarts + 1)) env -u SLURM_RESTART_COUNT \
        sbatch "${options[@]}" "launch/$script" "${arguments[@]}"
}

check_end() { # srun 22.05 returns 0 even where a node could not start its task
    if [[ ${code:-} == 0 && ! -e $WORKDIR/slim/report.json && ! -e $WORKDIR/final/report.json ]]; then
        echo "$script: srun returned 0, but no run has come to its end in $WORKDIR; see what it wrote above" >&2
        exit 1
    fi
}
trap 'check_end; come_back' EXIT

# Neighboring ranks on one socket of one node: their sums then take the short links first.
launcher=(srun "--mpi=${MPI:-pmix}" --kill-on-bad-exit=1 --distribution=block:block)
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then launcher+=(--cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=cores); fi
