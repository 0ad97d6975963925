"""When the collectives of a step run: `timeline.py FOLDER MODEL IMAGE_SIZE IMAGES`, a rank, and what is read from it.

Horovod's timeline says when a collective runs, but not when its tensors were there: it looks for new ones only between
two collectives. So the step notes that itself.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.step import TrainStep
from tests.networks import small_network

import numpy as np
import tensorflow as tf
from tensorflow import keras

NUM_STEPS = 12
MODELS = {"small": small_network, "resnet56": lambda image_size: cifar_resnet(56, image_size, 10)}


class Watched(Cluster):
    """Notes when the tensors of each collective are there, seconds since the epoch."""

    def __init__(self, cluster: Cluster) -> None:
        self.__dict__.update(vars(cluster))
        self._names: list[str] = []
        self._ready = tf.Variable(tf.zeros([20], tf.float64))

    def sum(self, tensors, name):
        self._names.append(name)
        with tf.control_dependencies(tensors):
            moment = tf.timestamp()
        self._ready.scatter_nd_update([[len(self._names) - 1]], [moment])
        with tf.control_dependencies([moment]):
            return super().sum([tf.identity(tensor) for tensor in tensors], name)

    @property
    def ready(self) -> dict[str, float]:
        """Of the last step."""
        return dict(zip(self._names, self._ready.numpy().tolist(), strict=False))


def work(folder: Path, model_name: str, image_size: int, num_images: int) -> None:
    """Make some steps with ResRep. Horovod writes its timeline if HOROVOD_TIMELINE is set."""
    cluster = Watched(Cluster())
    keras.utils.set_random_seed(0)
    base = MODELS[model_name](image_size=image_size)
    graph = trace(base)
    model = insert_compactors(base, graph)
    step = TrainStep(cluster, TrainingConfig(), cluster.size * num_images)
    state = TrainState(model, ResRepOptimizer(0.01, compactors_of(model, graph)))
    step.follow(state)
    state.share(cluster)
    random = np.random.default_rng(cluster.rank)
    images = tf.constant(random.normal(size=[num_images, image_size, image_size, 3]), tf.float32)
    labels = tf.constant(random.integers(0, 10, num_images))
    ready = []
    # Horovod may leave before it has written the last one.
    for _ in range(NUM_STEPS + 1):
        start = time.time()
        step.run(images, labels)
        step.settle()
        ready.append({"start": start, "end": time.time(), **cluster.ready})
    (folder / f"ready{cluster.rank}.json").write_text(json.dumps(ready[:NUM_STEPS]))
    cluster.shutdown()


class Step(NamedTuple):
    """Times of a step, seconds since the epoch."""

    start: float
    end: float
    collectives: dict[str, dict[str, float]]
    """By name: when its tensors were there on all ranks, `ready`, and when it ran, `start` and `end`."""

    @property
    def last_gradients(self) -> dict[str, float]:
        """Times of the collective with the gradients that come last."""
        return self.collectives[max(name for name in self.collectives if name != "step_rest")]


def read_steps(folder: Path, num_ranks: int) -> list[Step]:
    """The steps of `work`, and of the timeline that Horovod wrote beside its files."""
    runs = _runs(json.loads((folder / "timeline.json").read_text()))
    ready = [json.loads((folder / f"ready{rank}.json").read_text()) for rank in range(num_ranks)]
    steps = []
    for number, of_ranks in enumerate(zip(*ready, strict=True)):
        collectives = {}
        for name in of_ranks[0].keys() - {"start", "end"}:
            # Horovod's name has more in front of it and behind it.
            (found,) = (times for full_name, times in runs.items() if name in full_name)
            start, end = found[number]
            collectives[name] = {"ready": max(rank[name] for rank in of_ranks), "start": start, "end": end}
        start, end = min(rank["start"] for rank in of_ranks), max(rank["end"] for rank in of_ranks)
        steps.append(Step(start, end, collectives))
    return steps


def _runs(events: list[dict]) -> dict[str, list[tuple[float, float]]]:
    """By Horovod's name of each collective: when it ran, each time, seconds since the epoch."""
    names = {event["pid"]: event["args"]["name"] for event in events if "name" in event.get("args", {})}
    key = "start_time_since_epoch_in_micros"
    (epoch,) = (event["args"][key] for event in events if key in event.get("args", {}))
    begun: dict[int, list[dict]] = {}
    runs: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "B":
            begun.setdefault(event["pid"], []).append(event)
        elif event["ph"] == "E":
            start = begun[event["pid"]].pop()
            if start["name"] == "ALLREDUCE":
                times = (1e-6 * (epoch + start["ts"]), 1e-6 * (epoch + event["ts"]))
                runs.setdefault(names[event["pid"]], []).append(times)
    return runs


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
