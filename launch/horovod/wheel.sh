# shellcheck shell=bash disable=SC2154 # setup.sh assigns the variables
# Horovod's wheel: where one lies, and how it is built. setup.sh sources this file; it sets venv, version (of Python),
# device, mpi, nccl and cuda.
#
# Wheels lie outside .venv, one in each folder WHEELS/<build>.<compilers>: <build> names what the wheel is for, and
# <compilers> is a checksum of what compiled it. Where the compilers are missing, a wheel of any will do.

wheels=${XDG_CACHE_HOME:-${HOME:-$venv}/.cache}/resrep-dist/wheels
recipe=(launch/horovod/wheel.sh launch/horovod/cmake.sh
    launch/horovod/include/tensorflow/compiler/xla/client/xla_builder.h)

pinned() { # extra: its one requirement in pyproject.toml
    sed -nE "s/^$1 = \[\"([^\"]+)\"\]\$/\1/p" pyproject.toml
}

build_name() {
    local tensorflow
    tensorflow=$(pinned "$device")
    printf '%s-%s-python%s-%s-mpi%s-nccl%s-%s\n' "$(pinned horovod | sed s/==/-/)" \
        "$(sed 's/\[and-cuda\]//; s/==/-/' <<<"$tensorflow")" "${version%.*}" "$(uname -m)" "$mpi" "$nccl" \
        "$(cat "${recipe[@]}" | cksum | cut -d ' ' -f 1)"
}

compilers() { # nothing if one is missing
    local compiler=${CXX:-g++} variable
    has "$compiler" && has make || return 0
    if [[ $mpi == 1 ]]; then has mpicxx || return 0; fi
    {
        "$compiler" --version | head -n 1
        if [[ $mpi == 1 ]]; then readlink -f "$(command -v mpicxx)" && mpicxx -show || true; fi
        if [[ $nccl == 1 ]]; then PATH=$cuda/bin:$PATH nvcc --version 2>/dev/null || true; fi
        for variable in CXXFLAGS "${!HOROVOD_@}"; do printf '%s=%s\n' "$variable" "${!variable:-}"; done
    } | cksum | cut -d ' ' -f 1
}

find_wheel() { # for $build and $compilers; nothing if there is none
    local path
    # shellcheck disable=SC2231 # an unset compilers is a pattern
    for path in ${RESREP_WHEELS:+"$RESREP_WHEELS/$build".*/horovod-*.whl} "$wheels/$build".${compilers:-*}/horovod-*.whl; do
        if [[ -f $path ]]; then
            printf '%s\n' "$path"
            return
        fi
    done
}

keep_wheel() { # wheel, folder/name: copied under another name first, since others may look for it meanwhile
    mkdir -p "$2"
    cp "$1" "$2/.part.$$"
    mv "$2/.part.$$" "$2/${1##*/}"
}

use_nccl() { # of the machine where it is, otherwise that which TensorFlow's wheel for GPUs brings into .venv
    local folder nccl=nvidia/nccl packages
    export HOROVOD_GPU_OPERATIONS=NCCL
    if [[ -x $cuda/bin/nvcc ]]; then export HOROVOD_CUDA_HOME=${HOROVOD_CUDA_HOME:-$cuda}; fi
    for folder in "${HOROVOD_NCCL_HOME:-}" "$cuda" /usr /usr/local; do
        if [[ -f $folder/include/nccl.h ]]; then return; fi
    done
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$venv/nccl/lib"
    ln -sfn "$packages/$nccl/include" "$venv/nccl/include"
    ln -sfn "$packages/$nccl/lib/libnccl.so.2" "$venv/nccl/lib/libnccl.so"
    export HOROVOD_NCCL_HOME=$venv/nccl HOROVOD_NCCL_LINK=SHARED
    # Relative to horovod/tensorflow/, so that the wheel serves every .venv with this TensorFlow.
    export LDFLAGS="${LDFLAGS:-} -Wl,-rpath,\$ORIGIN/../../$nccl/lib"
}

compile_wheel() (
    include=$("$venv/bin/python" -c 'import importlib.util as u; print(u.find_spec("tensorflow").submodule_search_locations[0])')/include
    # Our own folder comes last: its header is for a TensorFlow that lacks it.
    export CPLUS_INCLUDE_PATH=$include/external/highwayhash:$include/external/farmhash_archive/src:$PWD/launch/horovod/include
    # GCC 13 and later no longer include these two by way of others.
    export CXXFLAGS="${CXXFLAGS:-} -include stdexcept -include cstdint" HOROVOD_CMAKE=$PWD/launch/horovod/cmake.sh
    export PATH=$venv/bin:$PATH MAKEFLAGS=${MAKEFLAGS:--j$(($(nproc) < 8 ? $(nproc) : 8))}
    export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1
    if [[ $mpi == 1 ]]; then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi
    if [[ $nccl == 1 ]]; then use_nccl; fi
    rm -rf "$venv/wheel"
    "$venv/bin/python" -m pip wheel --disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation \
        --no-binary horovod --wheel-dir "$venv/wheel" "$(pinned horovod)"
    keep_wheel "$venv"/wheel/horovod-*.whl "$wheels/$build.$compilers"
    rm -rf "$venv/wheel"
)
