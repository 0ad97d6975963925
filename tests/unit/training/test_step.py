"""One step on one process, against NumPy or against another way to the same."""

import itertools

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.data.source import Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.loss_scale import LossScale
from resrep_dist.training.step import TrainStep
from tests.networks import random_source, randomise, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

CLUSTER = Cluster()


@pytest.fixture
def float64():
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


def make_step(freeze_batch_norm=False, learning_rate=0.1, **options):
    """A step of a model with compactors, some rows masked, and all its state."""
    base = small_network(freeze_batch_norm=freeze_batch_norm)
    randomise(base)
    graph = trace(base)
    config = TrainingConfig(**options)
    model = with_precision(insert_compactors(base, graph), config.precision)
    compactors = compactors_of(model, graph)
    compactors[1].mask.assign([0.0] * 3 + [1.0] * 9)
    optimizer = ResRepOptimizer(learning_rate, compactors, lasso_strength=0.02)
    step = TrainStep(CLUSTER, config, 30)
    state = TrainState(model, optimizer, shared=step.variables)
    step.follow(state)
    return step, model, state


def batches(num_batches=3, size=30):
    source = random_source()
    for index in range(num_batches):
        part = slice(index * size, (index + 1) * size)
        yield tf.constant(source.images[part]), tf.constant(source.labels[part])


def train(step, num_batches=3):
    for images, labels in batches(num_batches):
        step.run(images, labels)


def values_of(state):
    return {name: variable.numpy() for name, variable in state.items()}


def assert_equal_states(received, expected, atol):
    assert received.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(received[name], expected[name], rtol=0, atol=atol, err_msg=name)


@keras.utils.register_keras_serializable("mine")
def branching(labels, outputs):
    if tf.reduce_max(outputs) > 0.0:
        return tf.reduce_sum(outputs, -1)
    return 3.0 * tf.reduce_sum(outputs, -1)


@pytest.mark.parametrize("bias, slope", [(1.0, 1.0), (-1.0, 3.0)])
def test_a_loss_of_a_user_may_branch_on_values(bias, slope):
    inputs = keras.Input([2])
    layer = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(bias))
    model = keras.Model(inputs, layer(inputs))
    step = TrainStep(CLUSTER, TrainingConfig(loss="mine>branching"), 4)
    state = TrainState(model, ResRepOptimizer(0.5, [], momentum=0.0, decay=0.0), shared=step.variables)
    step.follow(state)
    step.run(tf.ones([4, 2]), tf.zeros([4], tf.int64))
    np.testing.assert_allclose(layer.bias, [bias - 0.5 * slope] * 3, rtol=1e-6)


class Doubler(keras.layers.Layer):
    """Doubles what is small, by a branch on values, which only AutoGraph can put into a graph."""

    def call(self, inputs):
        if tf.reduce_mean(tf.abs(inputs)) < 1.0:
            return 2.0 * inputs
        return inputs


@pytest.mark.parametrize("size, factor", [(0.1, 2.0), (10.0, 1.0)])
def test_a_layer_of_a_user_may_branch_on_values(size, factor):
    inputs = keras.Input([2])
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="ones")(Doubler()(inputs)))
    step = TrainStep(CLUSTER, TrainingConfig(), 4)
    state = TrainState(model, ResRepOptimizer(0.5, [], momentum=0.0, decay=0.0), shared=step.variables)
    step.follow(state)
    labels = tf.zeros([4], tf.int64)
    step.run(tf.fill([4, 2], size), labels)
    # The logits are equal, so the gradient is that of probabilities of a third.
    expected = 1.0 - 0.5 * factor * size * np.array([-2 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(model.trainable_variables[0], [expected, expected], rtol=1e-5)
    source = Source(np.full([4, 2], size, np.float32), np.zeros(4, np.int64), 3)
    assert Evaluator(model).top1(source, 4) == 100.0


def test_accumulated_parts_are_the_whole_batch_penalty_included(float64):
    # 30 samples in 4 parts: they differ in size.
    states = []
    for num_parts in (1, 4):
        step, _, state = make_step(freeze_batch_norm=True, gradient_accumulation_steps=num_parts)
        train(step)
        states.append(values_of(state))
        metrics = step.read_metrics()
        assert metrics["skipped_steps"] == 0 and metrics["loss"] > 0
    assert_equal_states(states[1], states[0], 1e-12)


def test_parts_move_the_running_statistics_once_by_their_average(float64):
    step, model, state = make_step(gradient_accumulation_steps=4)
    before, moved = values_of(state), []
    (images, labels), edges = next(batches(1)), [0, 7, 15, 22, 30]
    for start, end in itertools.pairwise(edges):
        model(images[start:end], training=True)
        moved.append({name: state[name].numpy() for name in state if "moving" in name})
        for name, value in before.items():
            state[name].assign(value)
    step.run(images, labels)
    for name in moved[0]:
        expected = np.average([part[name] for part in moved], axis=0, weights=np.diff(edges))
        np.testing.assert_allclose(state[name].numpy(), expected, atol=1e-12)


def test_clipping_is_by_the_global_norm_of_the_objectives_gradients_alone(float64):
    images, labels = next(batches(1))
    _, model, state = make_step()
    before = values_of(state)
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(images, training=True), from_logits=True)
        loss = tf.reduce_mean(losses)
    gradients = [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_variables)]
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    step, model, state = make_step(gradient_clip_norm=float(norm / 3))
    step.run(images, labels)
    for gradient, variable in zip(gradients, model.trainable_variables, strict=True):
        name = variable.name.removesuffix(":0")
        weight, expected = before[name], gradient / 3
        if "compactor" in name:
            mask = before[name.replace("kernel", "mask")]
            expected = mask * expected + 0.02 * weight / np.linalg.norm(weight[0, 0], axis=0)
        elif weight.ndim > 1:
            expected = expected + 1e-4 * weight
        np.testing.assert_allclose(state[f"velocity/{name}"].numpy(), expected, atol=1e-10, err_msg=name)


def test_the_loss_is_the_configured_one(float64):
    images, labels = next(batches(1))
    step, model, _ = make_step(loss="mean_squared_error", class_weights=tuple(np.linspace(0.0, 2.0, 10).tolist()))
    outputs = model(images, training=True).numpy()
    expected = ((outputs - np.eye(10)[labels]) ** 2).mean(-1) * np.linspace(0, 2, 10)[labels]
    step, _, _ = make_step(loss="mean_squared_error", class_weights=tuple(np.linspace(0.0, 2.0, 10).tolist()))
    step.run(images, labels)
    assert step.read_metrics()["loss"] == pytest.approx(expected.mean(), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"gradient_accumulation_steps": 4}, marks=pytest.mark.slow),
        pytest.param({"precision": "mixed_float16"}, marks=pytest.mark.slow),
    ],
)
def test_xla_gives_the_same_step(options):
    tf.config.experimental.enable_op_determinism()
    states = []
    for xla in (False, True):
        step, _, state = make_step(xla=xla, **options)
        train(step)
        assert step.read_metrics()["skipped_steps"] == 0
        states.append(values_of(state))
    # XLA fuses, so it rounds at other places: to 16 bits where these are used.
    assert_equal_states(states[1], states[0], 1e-2 if "precision" in options else 2e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_16_bits_compute_the_same_gradients_roughly_and_leave_weights_in_float32(precision):
    velocities = []
    for name in ("float32", precision):
        step, model, state = make_step(precision=name)
        train(step, 1)
        velocities.append(np.concatenate([v.numpy().ravel() for n, v in state.items() if n.startswith("velocity")]))
        assert all(variable.dtype == tf.float32 for variable in model.weights)
    computes_in = {layer.name: layer.compute_dtype for layer in model.layers}
    assert computes_in["conv1"] == computes_in["conv1_compactor"] == precision.removeprefix("mixed_")
    assert computes_in["logits"] == "float32"
    difference = np.linalg.norm(velocities[1] - velocities[0]) / np.linalg.norm(velocities[0])
    # One unit in the last place is 2^-11 or 2^-8; it must show, and batch norm on 30 samples makes it some 25.
    unit = 2.0**-11 if precision == "mixed_float16" else 2.0**-8
    assert 0.05 * unit < difference < 40 * unit


def test_a_scale_that_is_too_large_is_lowered_and_the_step_changes_nothing():
    step, _, state = make_step(precision="mixed_float16")
    state["loss_scale"].assign(2.0**24)
    before = values_of(state)
    train(step, 1)
    after = values_of(state)
    assert after.pop("loss_scale") == 2.0**23 and after["iterations"] == 1
    assert_equal_states(
        {name: after[name] for name in before if name not in ("loss_scale", "iterations")},
        {name: before[name] for name in before if name not in ("loss_scale", "iterations")}, 0,
    )  # fmt: skip
    metrics = step.read_metrics()
    # That is how the scale is found, not a sign of trouble.
    assert metrics["skipped_steps"] == 1 and metrics["skipped_steps_in_a_row"] == 0
    for _ in range(12):
        train(step, 1)
    assert state["loss_scale_good_steps"].numpy() > 0


def test_a_nan_at_the_lowest_scale_is_trouble():
    step, _, state = make_step(precision="mixed_float16")
    state["loss_scale"].assign(1.0)
    images, labels = next(batches(1))
    step.run(images * np.nan, labels)
    assert step.read_metrics()["skipped_steps_in_a_row"] == 1
    assert state["loss_scale"].numpy() == 1.0


def test_the_scale_doubles_after_2000_good_steps():
    scale = LossScale()
    update = tf.function(scale.update)
    for _ in range(1999):
        update(tf.constant(True))
    assert scale.value.numpy() == 2.0**15
    update(tf.constant(True))
    assert scale.value.numpy() == 2.0**16 and scale.num_good_steps.numpy() == 0
    update(tf.constant(False))
    assert scale.value.numpy() == 2.0**15


def test_float16_for_the_way_takes_averages_up_to_64_and_says_when_not():
    class TwoAlike(Cluster):
        """Two ranks that hold the same."""

        def sum(self, tensors, name):
            types = {tensor.dtype for tensor in tensors}
            assert len(types) == 1, "a group has one type"
            return [2 * tensor for tensor in tensors]

    cluster = TwoAlike()
    cluster.size = 2
    step, _, _ = make_step(compression="fp16")
    step._cluster = cluster
    gradients = [tf.constant([1e-7, -0.37, 63.0]) / 2]  # of one rank: its part of the average
    received, rest, is_finite = step._sum(gradients, [tf.constant([1e-30, 1e30])])
    assert is_finite
    np.testing.assert_allclose(received[0], [1e-7, -0.37, 63.0], rtol=1e-3)
    np.testing.assert_array_equal(rest[0], np.float32([2e-30, 2e30]))
    assert not step._sum([tf.constant([70.0 / 2])], [tf.constant([1.0])])[2]


def test_a_gradient_too_large_for_its_way_does_not_lower_the_loss_scale():
    class TwoAlike(Cluster):
        """Two ranks that hold the same."""

        def sum(self, tensors, name):
            return [2 * tensor for tensor in tensors]

    step, _, state = make_step(precision="mixed_float16", compression="fp16", class_weights=(3000.0,) * 10)
    step._cluster = TwoAlike()
    step._cluster.size = 2
    step.follow(state)
    state["loss_scale"].assign(8.0)
    before = values_of(state)
    train(step, 2)
    assert step.read_metrics()["skipped_steps"] == 2, "the averaged gradients are above 64"
    assert state["loss_scale"].numpy() == 8.0
    np.testing.assert_array_equal(state["conv0/kernel"].numpy(), before["conv0/kernel"])


# Operations of TensorFlow that have a kernel for int64 on GPUs. Split, for one, has none: it would run on the host.
_INT64_ON_GPUS = {
    "AddV2", "ArgMax", "AssignAddVariableOp", "BitwiseAnd", "Cast", "ConcatV2", "Const", "Equal", "GatherV2",
    "GreaterEqual", "Identity", "Less", "LessEqual", "Mul", "NotEqual", "Placeholder", "Range", "ReadVariableOp",
    "Reshape", "RightShift", "SelectV2", "SparseSoftmaxCrossEntropyWithLogits", "StridedSlice", "Sub", "Sum",
    "UnsortedSegmentSum",
}  # fmt: skip


def test_no_operation_on_whole_numbers_leaves_the_gpu():
    # As in a run: the loss then has other operations.
    tf.config.experimental.enable_op_determinism()
    step, _, _ = make_step()
    function = step._compiled.get_concrete_function(*next(batches(1)))
    # The host would wait for an output, and the GPU then for the host: 4.5 ms of each step on an H100.
    assert not function.outputs
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    found = {node.op for node in nodes if any(value.type == tf.int64.as_datatype_enum for value in node.attr.values())}
    assert "NotEqual" in found and found <= _INT64_ON_GPUS, found - _INT64_ON_GPUS
    # TensorFlow's own loss has one with bounds that it knows when it compiles.
    ranges = [node.name for node in nodes if node.op == "Range" and node.attr["Tidx"].type == tf.int64.as_datatype_enum]
    assert not [name for name in ranges if "SparseSoftmax" not in name]


def test_gradients_travel_in_a_few_collectives_from_the_last_layer_on_and_the_rest_in_one():
    class Recording(Cluster):
        """Two ranks that hold the same; what is summed, by name."""

        def sum(self, tensors, name):
            calls.append((name, [tuple(tensor.shape) for tensor in tensors]))
            return [2 * tensor for tensor in tensors]

    step, model, state = make_step()
    step._cluster = Recording()
    step._cluster.size = 2
    all_calls = []
    for _ in range(2):
        calls = []
        step.follow(state)
        step.trace(*next(batches(1)))
        all_calls.append(calls)
    assert all_calls[0] == all_calls[1], "each graph has the same collectives"
    *buckets, (last, rest) = all_calls[0]
    assert 2 <= len(buckets) <= 6 and last == "step_rest"
    assert [name for name, _ in buckets] == [f"step_{number}" for number in range(len(buckets))]
    sent = [shape for _, shapes in buckets for shape in shapes]
    assert sent == [tuple(variable.shape) for variable in reversed(model.trainable_variables)]
    num_norms, num_statistics = 8 + 12 + 16, 2 * (8 + 12 + 16)
    assert rest == [(num_norms,), (num_statistics,), (12,), (5,)]
