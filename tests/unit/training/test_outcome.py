"""What a skipped step leaves, and when the host learns of it."""

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import NonFiniteError
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.step import TrainStep

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

CLUSTER = Cluster()
LABELS = tf.constant(np.arange(30) % 10)
IMAGES = tf.constant(np.random.default_rng(0).normal(size=[30, 8, 8, 3]), tf.float32)


def make_step(**options):
    """A step with all that touches a weight: decay, momentum, penalty, masks, constraint, clipping, batch norm."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(8, 3, kernel_constraint=keras.constraints.MaxNorm(0.5), name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn")(x)))
    base = keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))
    graph, config = trace(base), TrainingConfig(gradient_clip_norm=1.0, **options)
    model = with_precision(insert_compactors(base, graph), config.precision)
    (compactor,) = compactors_of(model, graph)
    compactor.mask.assign([0.0] * 3 + [1.0] * 5)
    optimizer = ResRepOptimizer(0.1, [compactor], decay=0.1, lasso_strength=0.02)
    step = TrainStep(CLUSTER, config, 30)
    step.follow(state := TrainState(model, optimizer, shared=step.variables))
    return step, state


def values_of(state):
    return {name: variable.numpy() for name, variable in state.items()}


@pytest.mark.parametrize("xla", [False, True])
def test_a_skipped_step_changes_no_bit_but_the_number_of_steps(xla):
    step, state = make_step(xla=xla)
    for _ in range(2):
        step.run(IMAGES, LABELS)
    for value in (np.nan, np.inf):
        before, num_steps = values_of(state), state.step
        step.run(IMAGES * value, LABELS)
        step.settle()
        after = values_of(state)
        assert before.pop("iterations") == num_steps and after.pop("iterations") == state.step == num_steps + 1
        for name, array in before.items():
            assert array.any() and array.tobytes() == after[name].tobytes(), name
    step.run(IMAGES, LABELS)
    for name, array in values_of(state).items():
        assert np.isfinite(array).all()
        if name != "iterations":
            assert np.array_equal(array, after[name]) == name.endswith("mask"), name


def test_the_host_learns_of_a_step_when_the_next_one_is_launched_or_when_it_asks(caplog):
    step, _ = make_step()

    def run(images):
        step.run(images, LABELS)
        return len(caplog.records)

    assert run(IMAGES * np.nan) == 0 and run(IMAGES) == 1 == run(IMAGES)
    assert caplog.messages[0].startswith("Step 1 is skipped by all ranks, 1 in a row. Not finite: rank 0: the loss, ")
    assert run(IMAGES * np.nan) == 1
    for _ in range(2):
        step.settle()
        assert len(caplog.records) == 2
    assert caplog.messages[1].startswith("Step 4 is skipped by all ranks, 1 in a row. ")
    run(IMAGES * np.nan)
    metrics = step.read_metrics()
    assert metrics["skipped_steps"] == 3 and metrics["skipped_steps_in_a_row"] == 2
    assert 0 < metrics["loss"] < 10, "over the two good steps"


def test_a_stop_that_was_asked_for_is_known_with_the_outcome():
    step, _ = make_step()
    step.request_stop()
    step.run(IMAGES, LABELS)
    assert not step.is_stop_requested()
    step.run(IMAGES, LABELS)
    assert step.is_stop_requested()


def test_after_ten_steps_in_a_row_the_run_ends_and_counts_what_came_before():
    step, state = make_step()
    step.run(IMAGES, LABELS)
    with pytest.raises(NonFiniteError, match="step 11: 10 steps in a row were not finite"):
        for _ in range(12):
            step.run(IMAGES * np.nan, LABELS)
    assert state.step == 10
    step.settle()


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_host_decides_nothing_in_the_middle_of_a_step(precision):
    step, _ = make_step(precision=precision)
    graph = step._compiled.get_concrete_function(IMAGES, LABELS).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert not {node.op for node in nodes} & {"If", "StatelessIf", "While", "StatelessWhile", "Switch", "Case"}
