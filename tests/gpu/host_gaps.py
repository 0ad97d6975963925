"""How long the GPU waits for the host, by TensorFlow's profiler.

`python -m tests.gpu.host_gaps FOLDER CONFIG [KEY=VALUE ...]` writes FOLDER/benchmark.json with the figures of each arm.
What overlaps counts once, so a busy share below 1 is time in which no kernel and no copy was at work.
"""

import itertools
import json
import sys
from pathlib import Path

from resrep_dist.benchmark.arms import noise_batch, plain_arm, prepare, pruned_arm, trace_and_warm
from resrep_dist.benchmark.stock import stock_arm
from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph.kept_channels import KeptChannels

import tensorflow as tf

NUM_STEPS = 10
LONGEST_KEPT = 5


def busy_intervals(space) -> list[tuple[int, int]]:
    """Start and end, in picoseconds, of the times in which the GPU worked, in order and without overlap."""
    events = sorted(
        (1000 * line.timestamp_ns + event.offset_ps, 1000 * line.timestamp_ns + event.offset_ps + event.duration_ps)
        for plane in space.planes
        if plane.name.startswith("/device:GPU:")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
    merged: list[tuple[int, int]] = []
    for start, end in events:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def figures(folder: Path) -> dict:
    """The busy share of the GPU in a profile, and its longest waits."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(next(folder.glob("plugins/profile/*/*.xplane.pb")).read_bytes())
    busy = busy_intervals(space)
    if not busy:
        raise SystemExit(f"the profile has no work of a GPU; it has {[plane.name for plane in space.planes]}")
    gaps = sorted((start - end for (_, end), (start, _) in itertools.pairwise(busy)), reverse=True)
    span = busy[-1][1] - busy[0][0]
    return {
        "busy_share": 1.0 - sum(gaps) / span,
        "step_ms": span / 1e9 / NUM_STEPS,
        "longest_gaps_ms": [round(gap / 1e9, 3) for gap in gaps[:LONGEST_KEPT]],
    }


def main() -> None:
    folder, path, *settings = sys.argv[1:]
    config = load_config(Path(path), settings)
    cluster = Cluster()
    model, graph = prepare(config)
    macs = graph.macs.total(graph.widths)
    arms = {
        "stock_horovod": stock_arm(model, macs, config, cluster),
        "plain": plain_arm(model, macs, config, cluster),
        "resrep": pruned_arm(model, graph, KeptChannels.all_of(graph), config, cluster),
    }
    batch = noise_batch(model, config, cluster)
    result = {}
    for name, arm in arms.items():
        trace_and_warm(arm, batch)
        with tf.profiler.experimental.Profile(str(Path(folder) / name)):
            for _ in range(NUM_STEPS):
                arm.live.step.run(*batch)
            arm.live.step.settle()
        result[name] = figures(Path(folder) / name)
        print(name, json.dumps(result[name]), flush=True)
    (Path(folder) / "benchmark.json").write_text(json.dumps({"arms": result}))


if __name__ == "__main__":
    main()
