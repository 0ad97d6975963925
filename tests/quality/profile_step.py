"""Where the time of a ResRep step goes, by TensorFlow's profiler.

    python -m tests.quality.profile_step configs/resnet56_cifar10.yaml [--set data.source=synthetic] [--steps 10]

One process. Sums the time of all operations on the host's threads and prints the share of each part; what is ours is
known by its name scopes, `resrep_...`.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

from resrep_dist.benchmark.arms import noise_batch, prepare, pruned_arm, trace_and_warm
from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph.kept_channels import KeptChannels

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

# The first that fits an operation, as "name:type", is its part.
PARTS = {
    "ResRep: update of the compactors": r"resrep_update/",
    "ResRep: row norms": r"resrep_norms/",
    "ResRep: digests and finite checks": r"resrep_checks/",
    "compactors, forward and backward": r"compactor.*:\w*(Conv2D|MatMul)",
    "convolutions, forward and backward": r":\w*(Conv2D|MatMul)",
    "batch norm": r":\w*FusedBatchNorm",
    "other layers, forward and backward": r"gradient_tape/|:\w*(Relu|Add|MaxPool|Mean|Pad|Softmax|Sparse)",
    "update of the other weights": r":ResourceApply",
}
# They only contain others.
CALLS = r":(\w*PartitionedCall|If|StatelessIf|While|StatelessWhile)$"


def operations(folder: Path) -> list[tuple[str, float]]:
    """("name:type", seconds) of each operation that ran while the profiler did."""
    space = xplane_pb2.XSpace()
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    space.ParseFromString(path.read_bytes())
    (host,) = [plane for plane in space.planes if plane.name == "/host:CPU"]
    named = {key: metadata.name for key, metadata in host.event_metadata.items()}
    events = [(named[event.metadata_id], event.duration_ps * 1e-12) for line in host.lines for event in line.events]
    is_operation = re.compile(r"[\w./-]+:\w+$")
    return [(name, seconds) for name, seconds in events if is_operation.match(name) and not re.search(CALLS, name)]


def part_of(operation: str) -> str:
    """The part of the step that an operation belongs to."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, operation)), "all else")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    config, cluster = load_config(options.config, options.overrides), Cluster()
    model, graph = prepare(config)
    arm, batch = (
        pruned_arm(model, graph, KeptChannels.all_of(graph), config, cluster),
        noise_batch(model, config, cluster),
    )
    trace_and_warm(arm, batch)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(options.steps):
            arm.live.step.run(*batch)
        tf.profiler.experimental.stop()
        found = operations(Path(folder))
    sums: dict[str, float] = collections.defaultdict(float)
    rest: dict[str, float] = collections.defaultdict(float)
    for operation, seconds in found:
        sums[part_of(operation)] += seconds
        if part_of(operation) == "all else":
            rest[operation.rpartition(":")[2]] += seconds
    total = sum(sums.values())
    milliseconds = 1000 * total / options.steps
    print(f"{config.model.name}, batch {config.data.global_batch_size}: {milliseconds:.1f} ms of operations a step")
    for part, seconds in sorted(sums.items(), key=lambda item: -item[1]):
        print(f"{part:40} {1000 * seconds / options.steps:9.2f} ms {100 * seconds / total:6.2f} %")
    largest = sorted(rest.items(), key=lambda item: -item[1])[:6]
    print("all else:", ", ".join(f"{kind} {100 * seconds / total:.2f} %" for kind, seconds in largest))


if __name__ == "__main__":
    main()
