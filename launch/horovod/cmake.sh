#!/usr/bin/env bash
# The cmake of Horovod's build (HOROVOD_CMAKE). GCC 14 refuses the flatbuffers that Horovod 0.28.1 brings: an assignment
# operator writes to a member that is const. The const is removed before the build is configured.
set -euo pipefail
header=$1/third_party/flatbuffers/include/flatbuffers/stl_emulation.h # `cmake --build .` has no such file
if [[ -f $header ]]; then sed -i 's/^  const size_type count_;/  size_type count_;/' "$header"; fi
exec cmake "$@"
