# syntax=docker/dockerfile:1
# Images with everything, for CPUs and for GPUs:
#
#   docker build --target cpu -t resrep:cpu --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker build --target gpu -t resrep:gpu --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker run --rm --gpus all --shm-size=1g -v /data:/data:ro -v "$PWD/weights:/weights:ro" -v "$PWD/runs:/runs" \
#       -e RANKS=8 -e WORKDIR=/runs/r50 -e CONFIG=configs/resnet50_imagenet.yaml resrep:gpu bash launch/mpirun.sh \
#       --set data.path=/data/imagenet --set model.weights=/weights/resnet50.safetensors
#
# They run as user 1001, who must be able to write to the run's folder. COMMIT is what TensorBoard shows of a run.
ARG SYSTEM=ubuntu:noble-20260217
# For nvcc and NCCL's headers. The final image has nothing of it: Horovod takes NCCL and CUDA's runtime in, and
# TensorFlow brings its own libraries.
ARG CUDA=nvidia/cuda:12.6.3-devel-ubuntu24.04
ARG BUILD_PACKAGES="ca-certificates g++ libopenmpi-dev make openmpi-bin python3.12-venv"

# --- Build: the set-up that everyone uses ---------------------------------------------------------------
FROM ${SYSTEM} AS cpu-build
ARG BUILD_PACKAGES
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install -y --no-install-recommends ${BUILD_PACKAGES} && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/resrep
COPY . .
RUN --mount=type=cache,target=/var/cache/uv \
    UV_CACHE_DIR=/var/cache/uv RESREP_SEAL=1 RESREP_DEVICE=cpu RESREP_MPI=1 UV_COMPILE_BYTECODE=1 bash launch/setup.sh

FROM ${CUDA} AS gpu-build
ARG BUILD_PACKAGES
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install -y --no-install-recommends ${BUILD_PACKAGES} && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/resrep
COPY . .
RUN --mount=type=cache,target=/var/cache/uv \
    UV_CACHE_DIR=/var/cache/uv RESREP_SEAL=1 RESREP_DEVICE=gpu RESREP_NCCL=1 RESREP_MPI=1 UV_COMPILE_BYTECODE=1 bash launch/setup.sh

# --- Run ------------------------------------------------------------------------------------------------
FROM ${SYSTEM} AS runtime
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends openmpi-bin openssh-client python3.12 \
    && rm -rf /var/lib/apt/lists/* && useradd --uid 1001 --create-home resrep \
    && install --directory --owner=resrep /runs
ARG COMMIT=
ENV PATH=/opt/resrep/.venv/bin:$PATH WORKDIR=/runs/resrep RESREP_COMMIT=${COMMIT}
WORKDIR /opt/resrep
USER 1001
HEALTHCHECK --interval=30m --timeout=2m --start-period=1m CMD ["resrep", "doctor"]
CMD ["resrep", "doctor"]

FROM runtime AS cpu
COPY --from=cpu-build /opt/resrep /opt/resrep

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-build /opt/resrep /opt/resrep
