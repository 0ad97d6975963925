#!/usr/bin/env bash
# From a fresh clone to a pruned network, in minutes: sets up, trains ResNet-20 on the bundled digits with
# two ranks, prunes it, and prints what came of it. Further arguments go to `resrep train`.
#
#   bash launch/demo.sh
#
# RANKS (default 2) and WORKDIR (default runs/demo) may be set; run again, it resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CONFIG=configs/digits_resnet20.yaml WORKDIR=${WORKDIR:-runs/demo}

bash launch/local.sh "$@" # sets up first; with its failure this ends too, with the same code
# The run has printed the table; the page is what is new.
.venv/bin/resrep report "$WORKDIR" | grep '^Page: '
