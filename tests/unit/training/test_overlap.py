"""Which collectives of a step can travel while its backward pass goes on, read off its graph."""

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.layers.sync_batch_norm import with_sync_batch_norm
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.step import TrainStep
from tests.networks import small_network

import pytest
import tensorflow as tf

# What takes time: filters' gradients, and what computes all gradients at once.
WORK = ("Conv2DBackpropFilter", "While", "StatelessWhile", "PartitionedCall", "StatefulPartitionedCall")


class Recording(Cluster):
    """Two ranks that hold the same; remembers what is summed, by name."""

    def __init__(self):
        super().__init__()
        self.size, self.summed = 2, {}

    def sum(self, tensors, name):
        self.summed[name] = list(tensors)
        return [2 * tensor for tensor in tensors]


def work_before(tensors):
    """The operations of `WORK` that have to end before these tensors are there."""
    found, waiting = set(), [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
    return {operation for operation in found if operation.type in WORK}


@pytest.mark.parametrize(
    "options, overlaps",
    [
        ({}, True),
        ({"sync_batch_norm": True}, True),
        ({"gradient_accumulation_steps": 2}, False),
        ({"xla": True}, False),
    ],
)
def test_the_first_gradients_travel_during_the_backward_pass_if_it_is_one_pass_and_not_compiled(options, overlaps):
    cluster, base = Recording(), small_network()
    graph = trace(base)
    model = insert_compactors(base, graph)
    if "sync_batch_norm" in options:
        model = with_sync_batch_norm(model, cluster)
    step = TrainStep(cluster, TrainingConfig(**options), 32)
    step.follow(TrainState(model, ResRepOptimizer(0.1, compactors_of(model, graph))))
    step.trace(tf.zeros([16, 16, 16, 3]), tf.zeros([16], tf.int64))
    buckets = sorted(name for name in cluster.summed if name.startswith("step_") and name != "step_rest")
    assert len(buckets) >= 2
    first, last = (work_before(cluster.summed[name]) for name in (buckets[0], buckets[-1]))
    assert first and last and bool(last - first) == overlaps
    assert any(name.startswith("sync_") for name in cluster.summed) == ("sync_batch_norm" in options)
