#!/usr/bin/env bash
# Trains with Open MPI's mpirun, here or on several hosts. Further arguments go to `resrep train`:
#
#   RANKS=16 HOSTS=host1:8,host2:8 CONFIG=configs/resnet50_imagenet_large_batch.yaml WORKDIR=/shared/r50 \
#       bash launch/mpirun.sh
#
# RANKS            how many (default 2)
# HOSTS            where, as in host1:8,host2:8 (default this machine); by ssh, the repository at the same path
# INTERFACE        the network that the hosts share, as in eth0 or 10.1.0.0/16; otherwise Open MPI tries all
# CORES            bind each rank to so many cores; 0 binds none (default: where this machine has GPUs, its cores divided
#                  by the ranks of a host; otherwise 0, the ranks of a host share its cores)
# CONFIG, WORKDIR, PASS  the experiment, the run's folder and more, see launch/ranks.sh
# OMPI_MCA_...     further settings of Open MPI, as in OMPI_MCA_plm_rsh_args="-p 2222"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Before the set-up, which builds Horovod without MPI where there is none.
if ! command -v mpirun >/dev/null; then
    echo 'mpirun.sh: mpirun is missing; Debian, Ubuntu: apt-get install openmpi-bin libopenmpi-dev; then run this again.' >&2
    echo 'Or start the ranks without MPI: bash launch/local.sh' >&2
    exit 2
fi
bash launch/setup.sh
if [[ $(cat .venv/setup.features 2>/dev/null) == *mpi=0 ]]; then
    echo 'mpirun.sh: Horovod in .venv has no MPI. While no job is at work in it: RESREP_MPI=1 bash launch/setup.sh' >&2
    echo 'Or start the ranks without MPI: bash launch/local.sh' >&2
    exit 2
fi
source launch/ranks.sh

# The transport is the plain one: NCCL brings its own, and openib is gone from Open MPI 5.
launcher=(mpirun -np "${RANKS:-2}" --tag-output --mca pml ob1 --mca btl '^openib')
if [[ ${HOSTS:-} ]]; then launcher+=(-H "$HOSTS"); fi
if [[ ${INTERFACE:-} ]]; then launcher+=(--mca btl_tcp_if_include "$INTERFACE" --mca oob_tcp_if_include "$INTERFACE"); fi
if [[ ! ${CORES:-} ]]; then CORES=$(cores_of_a_rank); fi
if [[ $CORES == 0 ]]; then CORES=; fi
launcher+=(--map-by "slot${CORES:+:PE=$CORES}" --bind-to "$([[ ${CORES:-} ]] && echo core || echo none)")
for name in PATH "${names[@]}"; do launcher+=(-x "$name"); done
start_ranks "${launcher[@]}" resrep train "$CONFIG" --workdir "$WORKDIR" "$@"
