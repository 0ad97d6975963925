"""A live model at smaller widths: the same function, the same training."""

import dataclasses
import json

from resrep_dist.checkpoints.variables import model_variables
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointError
from resrep_dist.graph import trace
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import live_graph
from resrep_dist.merging import merge
from resrep_dist.pruning.deadness import dead_channels
from resrep_dist.shrinking.early_merge import merged
from resrep_dist.shrinking.shrinker import Shrinker
from resrep_dist.shrinking.surgery import removable, with_channels, without_channels
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import model_for_training, plan_phase
from tests.networks import (
    branching_network,
    convolution,
    grouped_network,
    random_source,
    randomise,
    small_config,
    small_network,
    with_dead_channels,
)

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

CLUSTER = Cluster()
SOURCE = random_source()
layers = keras.layers


@pytest.fixture
def float64():
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


def depthwise_network(use_bias=False, batch_norm=True):
    """A dead channel of `conv` is a constant where `pointwise` receives it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([16, 16, 3])
    x = convolution(layers.MaxPooling2D(2)(inputs), 12, "conv")
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(name="depthwise_relu")(layers.BatchNormalization(name="depthwise_bn")(x))
    x = layers.Conv2D(12, 1, use_bias=use_bias, name="pointwise")(x)
    x = layers.BatchNormalization(name="pointwise_bn")(x) if batch_norm else x
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="pointwise_relu")(x))
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x), name="depthwise")
    randomise(model)
    return model


def make_live(model, graph):
    config = small_config(
        train={"num_epochs": 40},
        # One channel more every 20 steps: some are dead, some masked, some to come.
        prune={
            "target_macs_fraction": 0.1,
            "lasso_strength": 0.05,
            "channels_per_update": 1,
            "mask_interval_steps": 20,
        },
        shrink={"mode": "exact", "min_saved_macs_fraction": 0.01},
    )
    plan = plan_phase(config, graph, len(SOURCE))
    live = LiveModel(model_for_training(model, graph, config, CLUSTER), graph, plan, config.training, CLUSTER)
    return live, Shrinker(graph, config, plan.require_masks(), CLUSTER)


def train(live, first_step, last_step):
    for step in range(first_step + 1, last_step + 1):
        part = slice(32 * (step % 10), 32 * (step % 10) + 32)
        live.step.run(tf.constant(SOURCE.images[part]), tf.constant(SOURCE.labels[part]))
        if live.pruner.is_due(step):
            live.pruner.update()


def copy_of(live, model, graph):
    copy, shrinker = make_live(model, graph)
    for name, variable in copy.state.items():
        variable.assign(live.state[name])
    copy.state.num_chosen = live.state.num_chosen
    return copy, shrinker


@pytest.mark.parametrize("make_model", [small_network, branching_network, depthwise_network])
def test_in_float64_training_goes_on_as_if_the_dead_channels_were_still_there(float64, make_model):
    model = make_model()
    graph = trace(model, exclude=["pointwise"] if make_model is depthwise_network else [], residual_groups=True)
    live, _ = make_live(model, graph)
    # Of layers that live and die together some channels are the weakest from the start.
    for layer in (layer for group in graph.groups if len(group.layers) > 1 for layer in group.layers):
        compactor = live.state.model.get_layer(layer.compactor)
        compactor.kernel.assign(compactor.kernel * ([0.05] * 3 + [1.0] * 7))
    train(live, 0, 150)
    small, shrinker = copy_of(live, model, graph)
    layout = KeptChannels.from_json(graph, shrinker.next_channels(small.state, small.pruner))
    num_gone = sum(graph.widths) - sum(layout.widths)
    assert num_gone >= 3, "rows have died"
    small.follow(shrinker.shrink(small.state, layout, ()))
    if make_model is branching_network:
        widths = zip(graph.groups, layout.widths, strict=True)
        assert any(len(group.layers) > 1 and width < group.width for group, width in widths)
    chosen_before = live.pruner.num_chosen
    train(live, 150, 350)
    train(small, 150, 350)
    assert live.pruner.num_chosen == small.pruner.num_chosen > chosen_before, "masks went on changing"
    assert live.pruner.unmasked_widths() == small.pruner.unmasked_widths()
    assert live.pruner.living_widths() == small.pruner.living_widths()
    _, shrinker = copy_of(live, model, graph)
    expected = shrinker.shrink(live.state, layout, ())
    assert expected.keys() == small.state.keys()
    for name, variable in expected.items():
        # A running mean lags behind the constant that it holds, which shrinks with the weights that are gone.
        atol = 0.05 if name == "pointwise_bn/moving_mean" else 1e-9
        np.testing.assert_allclose(small.state[name].numpy(), variable.numpy(), rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("make_model", [small_network, branching_network, grouped_network])
def test_a_shrunken_model_is_counted_and_merged_and_reports_the_original_widths(make_model):
    model = make_model()
    randomise(model)
    graph = trace(model, residual_groups=True)
    pruned = with_dead_channels(model, graph)
    dead = dead_channels(pruned, graph)
    images = SOURCE.images[:32]
    # In two steps, so that the second begins at the widths of the first.
    first = [channels & (np.arange(len(channels)) % 2 == 0) for channels in dead]
    small = without_channels(pruned, graph, first)
    layout = KeptChannels.all_of(graph).without(first)
    rest = [channels[list(kept)] for channels, kept in zip(dead, layout.kept, strict=True)]
    assert any(channels.any() for channels in rest)
    small = without_channels(small, graph, rest)
    layout = layout.without(rest)
    assert live_graph(small, graph).widths == layout.widths == [int((~channels).sum()) for channels in dead]
    np.testing.assert_allclose(small(images), pruned(images), atol=1e-5)
    whole, _ = merge(pruned, graph, images, tolerance=1e-5)
    slim, certificate = merge(small, graph, images, tolerance=1e-5)
    parts = [group.num_parts for group in graph.groups]
    assert [entry["original"] for entry in certificate.channels.values()] == [g.num_channels for g in graph.groups]
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert kept == [width * num_parts for width, num_parts in zip(layout.widths, parts, strict=True)]
    for expected, received in zip(whole.get_weights(), slim.get_weights(), strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-5)
    # What is counted before it is built is what is built, and what a count by hand of the layers gives.
    assert training_macs(pruned, graph, layout) == training_macs(small, graph, layout) == macs_by_hand(small)


def macs_by_hand(model):
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(int(np.prod(layer.output_shape[1:-1])) * int(np.prod(layer.kernel.shape)) for layer in kernels)


def test_a_layout_gives_the_structure_back():
    model = branching_network()
    graph = trace(model, residual_groups=True)
    pruned = with_dead_channels(model, graph)
    dead = dead_channels(pruned, graph)
    small = without_channels(pruned, graph, dead)
    for is_merged in (False, True):
        saved = {"kept": [np.flatnonzero(~channels).tolist() for channels in dead], "is_merged": is_merged}
        built = with_channels(pruned, graph, KeptChannels.from_json(graph, saved))
        like = merged(small, graph) if is_merged else small
        shapes = [{name: v.shape for name, v in model_variables(m).items()} for m in (built, like)]
        assert shapes[0] == shapes[1]


def test_a_constant_goes_where_it_can_and_its_channel_stays_where_it_cannot(float64):
    images = SOURCE.images[:16]
    for options, can_go in [
        ({}, True),
        ({"use_bias": True, "batch_norm": False}, True),
        ({"batch_norm": False}, False),
    ]:
        model = depthwise_network(**options)
        graph = trace(model, exclude=["pointwise"])
        pruned = with_dead_channels(model, graph)
        dead = [pruned.get_layer("conv_compactor").mask.numpy() == 0]
        going = removable(pruned, graph, dead)
        assert going[0].tolist() == (dead[0] & can_go).tolist()
        if can_go:
            small = without_channels(pruned, graph, going)
            assert small.get_layer("depthwise").output_shape[-1] == 12 - dead[0].sum()
            np.testing.assert_allclose(small(images), pruned(images), rtol=0, atol=1e-9)


class AllDead:
    """A pruner with nothing left to do."""

    def __init__(self, channels):
        self.channels = channels

    def dead(self):
        return self.channels

    def is_pruned(self):
        return True


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_constant_that_has_to_stay_refuses_the_merge_on_all_ranks_alike(batch_norm, caplog):
    model = depthwise_network(batch_norm=batch_norm)
    graph = trace(model, exclude=["pointwise"])
    live, shrinker = make_live(model, graph)
    shrinker._config = dataclasses.replace(shrinker._config, mode="merge")
    pruner = AllDead([np.arange(12) >= 8])
    answer = shrinker.next_channels(live.state, pruner)
    # Rank 0 decides; every rank takes what it answers.
    assert live.state.early_merge is None and json.loads(json.dumps(answer)).keys() == answer.keys()
    assert answer.get("is_merged", False) == batch_norm
    assert ("refused" in answer) == ("goes on as exact: a dead channel is a constant" in caplog.text) != batch_norm
    if not batch_norm:
        live.state.early_merge = answer
        again = shrinker.next_channels(live.state, pruner)
        assert again is None or not again["is_merged"]


def test_a_shrink_counts_to_the_merge_that_comes():
    model = small_network()
    live, shrinker = make_live(model, trace(model))
    shrinker._masks = dataclasses.replace(shrinker._masks, pruned_step=40, num_steps=100)
    kept = live.state.channels.without([np.arange(width) >= width // 2 for width in shrinker._graph.widths])
    saved = 1 - shrinker._macs(live.state, kept) / shrinker._macs(live.state, live.state.channels)

    def is_worth(mode, min_saved_steps, step, early_merge=None):
        config = dataclasses.replace(shrinker._config, mode=mode, min_saved_steps=min_saved_steps)
        shrinker._config, live.state.step, live.state.early_merge = config, step, early_merge
        return shrinker._is_worth(live.state, kept)

    assert 0.3 < saved < 0.4
    assert is_worth("exact", 20, 20) and not is_worth("merge", 20, 20) and is_worth("merge", 5, 20)
    assert is_worth("merge", 20, 20, {"step": 10, "refused": "why"}), "no merge comes"
    assert not is_worth("exact", 1, 100) and is_worth("exact", 0, 110), "0 is no limit in the extension either"


def test_what_was_merged_begins_at_rest_and_the_rest_keeps_its_speed():
    model = small_network()
    graph = trace(model)
    live, shrinker = make_live(model, graph)
    train(live, 0, 150)
    saved = shrinker.next_channels(live.state, live.pruner)
    layout = dataclasses.replace(KeptChannels.from_json(graph, saved), is_merged=True)
    assert sum(layout.widths) < sum(graph.widths)
    small, _ = copy_of(live, model, graph)
    small.follow(shrinker.shrink(live.state, layout, [SOURCE.images[:64]], SOURCE))
    assert small.pruner is None and int(small.state.optimizer.iterations) == 150
    for name, variable in small.state.items():
        layer, _, weight = name.removeprefix("velocity/").partition("/")
        if not name.startswith("velocity/"):
            continue
        if layer == "logits":
            before = live.state[name].numpy()
            assert variable.numpy().any()
            np.testing.assert_array_equal(variable, before[list(layout.kept[-1])] if weight == "kernel" else before)
        else:
            assert not variable.numpy().any(), name


@pytest.mark.parametrize("kept", [[[0, 1]], [[0], [1], [16]], [[0], [1], []], [[1, 0], [1], [2]], [[0], [1], ["a"]]])
def test_a_layout_of_another_model_is_refused(kept):
    graph = trace(small_network())
    with pytest.raises((ValueError, TypeError)):
        KeptChannels.from_json(graph, {"kept": kept, "is_merged": False})


def test_layouts_of_earlier_versions_are_read_and_those_that_were_folded_at_every_shrink_refused():
    graph, kept = trace(small_network()), [[0, 7], [11], [0, 1, 15]]
    for flags, is_merged in [
        ({"is_refolded": False}, False),
        ({"is_refolded": False, "is_merged": False}, False),
        ({"is_refolded": True, "is_merged": True}, True),
        ({"is_merged": True}, True),
    ]:
        channels = KeptChannels.from_json(graph, {"kept": kept, **flags})
        assert channels.widths == [2, 1, 3] and channels.is_merged == is_merged
        assert KeptChannels.from_json(graph, channels.to_json(graph)) == channels
    for flags in ({"is_refolded": True}, {"is_refolded": True, "is_merged": False}):
        with pytest.raises(CheckpointError, match="shrink.mode refold, which was removed; finish the run with version"):
            KeptChannels.from_json(graph, {"kept": kept, **flags})
