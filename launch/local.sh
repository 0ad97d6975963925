#!/usr/bin/env bash
# Trains with horovodrun (Gloo), one process a rank, here or on several hosts. Further arguments go to `resrep train`:
#
#   RANKS=4 CONFIG=configs/digits_resnet20.yaml WORKDIR=runs/digits bash launch/local.sh --set train.num_epochs=40
#
# RANKS            how many (default 2)
# HOSTS            where, as in host1:8,host2:8 (default this machine); by ssh, the repository at the same path
# INTERFACE        the network interface that the hosts share, as in eth0; otherwise horovodrun looks for one
# CONFIG, WORKDIR, PASS  the experiment, the run's folder and more, see launch/ranks.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
source launch/ranks.sh

launcher=(horovodrun --gloo -np "${RANKS:-2}" ${HOSTS:+-H "$HOSTS"} ${INTERFACE:+--network-interfaces "$INTERFACE"})
start_ranks "${launcher[@]}" resrep train "$CONFIG" --workdir "$WORKDIR" "$@"
