#!/usr/bin/env bash
# Makes .venv in the repository's root: TensorFlow, this package, and Horovod, which is built from source.
#
#   bash launch/setup.sh
#   bash launch/setup.sh --wheel DIR    also writes Horovod's wheel below DIR, for machines that have no compiler
#
# Needs Linux, Python 3.10 to 3.13, g++, make and a package registry. Running it again costs nothing. A finished .venv
# keeps its MPI and NCCL, or goes on without: a shell may see less of the machine than the one before, or more, as on a
# compute node without a network. Where mpicxx or nvcc came later, RESREP_MPI=1 or RESREP_NCCL=1 builds Horovod again; no
# job may be at work in .venv. For another MPI remove .venv first.
# Horovod's wheel is kept in ~/.cache/resrep-dist, and a further .venv of the same kind takes it from there.
# Variables, all optional:
#   PYTHON          the Python to use; otherwise python3.12, 3.13, 3.11, 3.10 or python3, the first that fits
#   RESREP_DEVICE   cpu or gpu: which TensorFlow; otherwise gpu where nvidia-smi sees one
#   RESREP_MPI      1 or 0: build Horovod with MPI; otherwise as .venv has it, at first 1 where mpicxx is found
#   RESREP_NCCL     1 or 0: build Horovod with NCCL; otherwise as .venv has it, at first 1 where a GPU and nvcc are
#   RESREP_WHEELS   a folder that --wheel wrote: a wheel in it that fits is taken, and no compiler is needed
#   RESREP_SEAL     1: for an image, where nothing is built any more; without what only builds and tests need
set -euo pipefail

stop() { # what is wrong, then lines that say how to fix it
    printf '\nset-up: %s\n' "$1" >&2
    shift
    if (($#)); then printf '  %s\n' "$@" >&2; fi
    exit 2 # as `resrep` leaves where starting again would change nothing
}

wheel_target=
if (($# == 2)) && [[ $1 == --wheel && $2 ]]; then
    wheel_target=$(realpath -m "$2")
elif (($#)); then
    stop "received '$*', expected nothing or --wheel DIR."
fi
if [[ ${RESREP_WHEELS:-} ]]; then RESREP_WHEELS=$(realpath -m "$RESREP_WHEELS"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv_version=0.13.9
venv=$PWD/.venv
log=$venv/setup.log
PATH=${PATH//"$venv/bin:"/} # where .venv is active, its Python must not build it again
unset PYTHONHOME PYTHONPATH
if [[ -f $venv/sealed ]]; then
    if [[ $wheel_target ]]; then stop "$venv is sealed; it cannot build a wheel any more."; fi
    exit 0
fi

has() { command -v "$1" >/dev/null 2>&1; }

python_from_uv() { # uv itself comes from .venv, from PATH, or from the pip of any Python that is here
    local uv folder candidate
    uv=$(command -v "$venv/bin/uv" uv | head -n 1)
    if [[ -z $uv ]]; then
        folder=$(mktemp -d)
        for candidate in python3 python; do
            has "$candidate" || continue
            "$candidate" -m pip install --quiet --target "$folder" "uv==$uv_version" >&2 && uv=$folder/bin/uv && break
        done
    fi
    [[ $uv ]] && "$uv" python install 3.12 >&2 && "$uv" python find --managed-python 3.12
}

# --- What this machine has, and whether all is done -----------------------------------------------------
device=${RESREP_DEVICE:-cpu}
if [[ -z ${RESREP_DEVICE:-} ]] && has nvidia-smi && [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]]; then device=gpu; fi
[[ $device == cpu || $device == gpu ]] || stop "RESREP_DEVICE is '$device'; it may be cpu or gpu."
mpi=${RESREP_MPI:-$(has mpicxx && echo 1 || echo 0)}
cuda=${CUDA_HOME:-/usr/local/cuda}
nccl=${RESREP_NCCL:-0}
if [[ -z ${RESREP_NCCL:-} && $device == gpu ]] && { has nvcc || [[ -x $cuda/bin/nvcc ]]; }; then nccl=1; fi
# A .venv of an older set-up has only the file that says which device it is for.
built=$(cat "$venv/setup.features" 2>/dev/null || sed -nE 's/.* (cpu|gpu) uv .*/\1/p' "$venv/made-for" 2>/dev/null || true)
if [[ ! ${RESREP_DEVICE:-} && $built == cpu* && $device == gpu ]]; then
    stop '.venv is for CPUs, but this machine has a GPU.' 'RESREP_DEVICE=gpu bash launch/setup.sh builds it again; no job may be at work in it.' \
        'RESREP_DEVICE=cpu, set for every launch, keeps it.'
fi
if [[ ! ${RESREP_DEVICE:-} && $built == gpu* ]]; then device=gpu; fi
# What the shell sees counts where nothing is built yet; NCCL is seen anew for another device.
if [[ ! ${RESREP_NCCL:-} && $built == "$device nccl="* ]]; then nccl=${built#*nccl=} nccl=${nccl%% *}; fi
if [[ ! ${RESREP_MPI:-} && $built == *mpi=* ]]; then mpi=${built#*mpi=}; fi
features="$device nccl=$nccl mpi=$mpi"
# shellcheck source=launch/horovod/wheel.sh
source launch/horovod/wheel.sh
stamp=$(cat pyproject.toml launch/setup.sh "${recipe[@]}" - <<<"$features $PWD" | cksum)
finished() { [[ -x $venv/bin/resrep && $(cat "$venv/setup.stamp" 2>/dev/null) == "$stamp" ]]; }
if [[ ! $wheel_target ]] && [[ ! ${PYTHON:-} || $("$PYTHON" -V 2>/dev/null) == $("$venv/bin/python" -V 2>/dev/null) ]] && finished; then exit 0; fi

# One set-up at a time. The lock is on this file, and goes when the process goes. (Over NFS it needs leave to write.)
exec 9<>launch/setup.sh
if has flock && ! flock -n 9; then
    echo 'set-up: another one is at work here; waiting for it'
    flock 9 && exec bash launch/setup.sh ${wheel_target:+--wheel "$wheel_target"} # .venv is another one now
fi

# --- What must be here before anything is fetched -------------------------------------------------------
python=
seen=()
for candidate in ${PYTHON:-python3.12 python3.13 python3.11 python3.10 python3}; do
    version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    if [[ $version != 3.1[0123].* ]]; then
        seen+=("$candidate is $version")
    elif "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
        python=$candidate
        break
    else
        seen+=("$candidate is $version, without the module venv; Debian, Ubuntu: apt-get install python${version%.*}-venv")
    fi
done
if [[ -z $python && -z ${PYTHON:-} ]]; then
    echo 'set-up: no suitable Python here; uv installs Python 3.12'
    python=$(python_from_uv) && version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') || python=
fi
if [[ -z $python ]]; then
    stop 'no suitable Python. Wanted: 3.10 to 3.13, with its module venv. Found:' "${seen[@]:-none}" \
        'Install one, or name it: PYTHON=/path/to/python3.11 bash launch/setup.sh'
fi
made_for="$PWD $version $device uv $uv_version"
if [[ -d $venv && $(cat "$venv/made-for" 2>/dev/null) != "$made_for" ]]; then
    echo 'set-up: .venv is half made, moved, or for something else; building it again'
    rm -rf "$venv"
fi
build=$(build_name)
compilers=$(compilers)
wheel=$(find_wheel)
horovod_is_there() { [[ $(cat "$venv/horovod-build" 2>/dev/null) == "$build".${compilers:-*} ]]; }
if [[ ! $wheel ]] && { [[ $wheel_target ]] || ! horovod_is_there; }; then
    for tool in "${CXX:-g++}" make; do
        has "$tool" || stop "$tool is missing. Horovod publishes no wheels and is compiled here." \
            'Debian, Ubuntu: apt-get install g++ make' 'Fedora, Rocky: dnf install gcc-c++ make' \
            "Or use a wheel that 'bash launch/setup.sh --wheel DIR' wrote elsewhere: RESREP_WHEELS=DIR bash launch/setup.sh"
    done
    if [[ $mpi == 1 ]] && ! has mpicxx; then
        stop 'mpicxx is missing, and RESREP_MPI=1 asks for it, or .venv had MPI (RESREP_MPI=0 does without).' \
            'Debian, Ubuntu: apt-get install openmpi-bin libopenmpi-dev'
    fi
    if [[ $nccl == 1 && $device == cpu ]]; then stop 'RESREP_NCCL=1 is for GPUs.' 'RESREP_DEVICE=gpu RESREP_NCCL=1 bash launch/setup.sh'; fi
    if [[ $nccl == 1 ]] && ! has nvcc && [[ ! -x $cuda/bin/nvcc ]]; then
        stop "nvcc is missing: it is not in PATH and there is no $cuda/bin/nvcc. RESREP_NCCL=1 asks for it, or .venv had NCCL." \
            'Install the CUDA toolkit 12 or 13, or name its folder: CUDA_HOME=/path/to/cuda'
    fi
fi
free=$(df -Pm . | awk 'NR == 2 { print $4 }')
if [[ ! -d $venv && $free -lt 4000 ]]; then stop "only $free MB of disk are free; .venv and the build need 4000." 'Free some.'; fi

# --- How a stage is run ---------------------------------------------------------------------------------
trap 'printf "\nset-up: interrupted; run it again and it goes on from this stage\n" >&2; exit 130' INT TERM

explain() { # the log's last lines, and the fix for what goes wrong most often
    printf '\n\nset-up: this stage failed. The last lines of %s:\n\n' "$log"
    tail -n 15 "$log"
    printf '\n'
    case $(tail -n 100 "$log") in
        *'No space left'*) echo 'The disk is full: free some, or set TMPDIR and UV_CACHE_DIR to folders on another one.' ;;
        *'Killed signal'* | *'out of memory'*) echo 'Memory ran out: build with fewer compilers at once, MAKEFLAGS=-j1.' ;;
        *'error sending request'* | *'dns error'* | *'Failed to fetch'* | *'No matching distribution'* | *'timed out'*)
            echo 'The package registry cannot be reached, or lacks a package. Check the network. For a proxy set'
            echo 'HTTPS_PROXY, for a mirror PIP_INDEX_URL, for a certificate of your own PIP_CERT and SSL_CERT_FILE.' ;;
    esac
    echo 'Run this again when that is fixed: it goes on from this stage.'
}

stage() { # number, title, function: one line with a dot every 10 s; what it prints goes to the log
    local start=$SECONDS code
    printf '[%s/4] %s ' "$1" "$2"
    printf '\n===== [%s/4] %s\n' "$1" "$2" >>"$log"
    # It ends when its input is closed. To end it by `kill` makes bash 5.2 complain where a stage takes no time.
    exec 8> >(exec 9<&-; until read -rt 10 || (($? <= 128)); do printf .; done)
    set +e # `if "$3"` would run on after an error inside the function
    (set -e; "$3") >>"$log" 2>&1 </dev/null 8>&-
    code=$?
    set -e
    exec 8>&-
    if ((code)); then explain >&2; exit 1; fi
    printf ' %d s\n' $((SECONDS - start))
}

# --- The four stages ------------------------------------------------------------------------------------
make_venv() {
    [[ $(cat "$venv/made-for" 2>/dev/null) == "$made_for" ]] && return
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check "uv==$uv_version"
    echo "$made_for" >"$venv/made-for"
}

uv_install() { # uv reads UV_*, not pip's settings: hand over a mirror that pip is told to use
    local index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    if [[ $index ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
    "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"
}

install_packages() {
    local dev=dev,docs,
    if [[ ${RESREP_SEAL:-0} == 1 ]]; then dev=; fi
    uv_install --editable ".[$device,prune,torch-weights,report,onnx,${dev}horovod-build]"
}

install_horovod() {
    if [[ ! $wheel ]] && { [[ $wheel_target ]] || ! horovod_is_there; }; then compile_wheel; fi
    if horovod_is_there; then return; fi
    wheel=$(find_wheel)
    rm -f "$venv/horovod-build"
    uv_install --no-deps --reinstall "$wheel"
    basename "$(dirname "$wheel")" >"$venv/horovod-build"
}

verify() { # TensorFlow is imported by the package, which chooses Keras 2
    "$venv/bin/python" - "$mpi" "$nccl" <<'PYTHON'
import sys
import resrep_dist
import horovod.tensorflow as hvd
assert hvd.gloo_built(), "Horovod was built without Gloo"
assert bool(hvd.mpi_built()) == (sys.argv[1] == "1"), "Horovod's MPI is not as wanted"
assert bool(hvd.nccl_built()) == (sys.argv[2] == "1"), "Horovod's NCCL is not as wanted"
PYTHON
}

seal() {
    "$venv/bin/uv" pip uninstall --python "$venv/bin/python" cmake uv wheel
    rm -rf "$venv"/lib/python3.*/site-packages/tensorflow/include
    touch "$venv/sealed"
}

mkdir -p "$venv"
: >"$log"
stage 1 "Python $version and uv" make_venv
stage 2 "TensorFlow ($device) and the other packages" install_packages
title='Horovod, compiled here: 3 to 4 minutes'
if [[ $wheel ]]; then title='Horovod, from a wheel that is here'; fi
if horovod_is_there && [[ $wheel || ! $wheel_target ]]; then title='Horovod, which is there'; fi
stage 3 "$title" install_horovod
stage 4 'Does it start?' verify
echo "$features" >"$venv/setup.features"
echo "$stamp" >"$venv/setup.stamp"
echo "set-up: ready in $SECONDS s (Horovod with Gloo$([[ $mpi == 1 ]] && echo ', MPI')$([[ $nccl == 1 ]] && echo ', NCCL'))"
if [[ $wheel_target ]]; then
    wheel=$(find_wheel)
    name=$(basename "$(dirname "$wheel")")
    keep_wheel "$wheel" "$wheel_target/$name"
    echo "set-up: Horovod's wheel is $wheel_target/$name/${wheel##*/}"
fi
if [[ ${RESREP_SEAL:-0} == 1 ]]; then seal >>"$log" 2>&1; fi
