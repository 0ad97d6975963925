"""Our maths against numbers that the authors' own code gave (see data/README.md)."""

import dataclasses
import json

from resrep_dist.benchmark.replay import MODES, stages
from resrep_dist.benchmark.widths import read_log
from resrep_dist.cli.benchmark_commands import RELEASED_RUN
from resrep_dist.config import ModelConfig, load_config
from resrep_dist.graph import Graph, trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging import fold_arrays
from resrep_dist.models.building import build_model
from resrep_dist.pruning.rules import row_norms, select_masks, update_compactor

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


def paper_model(name: str) -> tuple[keras.Model, Graph]:
    """The model at the paper's size, and its graph; the stem stays, as in the paper."""
    if name == "resnet50_stride_on_1x1":
        model = keras.applications.ResNet50(weights=None)
        return model, trace(model, exclude=["conv1_conv"])
    if name == "mobilenet_v1":
        model = build_model(ModelConfig(name=name, num_classes=1000, image_size=224))
        return model, trace(model)
    if name == "resnet50":
        model = build_model(ModelConfig(name=name, num_classes=1000, image_size=224))
        return model, trace(model, exclude=["stem"])
    model = build_model(ModelConfig(name=name, num_classes=10, image_size=32))
    return model, trace(model)


def with_authors_projections(name: str, graph: Graph) -> Graph:
    """In the CIFAR nets the authors count the 1x1 projections (16 to 32, 32 to 64 channels) as 2x2."""
    if name not in ("resnet56", "resnet110"):
        return graph
    extra = 3 * (16 * 16 * 16 * 32 + 8 * 8 * 32 * 64)
    return dataclasses.replace(graph, macs=dataclasses.replace(graph.macs, constant=graph.macs.constant + extra))


def internal_widths(name: str, widths: list[int]) -> list[int]:
    """Widths of the prunable convolutions out of those of all, in the authors' order."""
    if name == "mobilenet_v1":
        # Every other width is that of a depthwise convolution, which has those of the layer before it.
        return [widths[0], *widths[2::2]]
    is_bottleneck = name.startswith("resnet50")
    per_block = 3 if is_bottleneck else 2
    num_blocks = [3, 4, 6, 3] if is_bottleneck else [(int(name[6:]) - 2) // 6] * 3
    result, position = [], 1
    for stage, blocks in enumerate(num_blocks):
        position += 1 if is_bottleneck or stage else 0
        for _ in range(blocks):
            result += widths[position : position + per_block - 1]
            position += per_block
    assert position == len(widths)
    return result


@pytest.mark.parametrize("name", ["resnet50", "resnet50_stride_on_1x1", "resnet56", "resnet110", "mobilenet_v1"])
def test_multiply_adds_are_the_authors(golden, name):
    records = [r for r in json.loads((golden / "macs.json").read_text()) if r["model"] == name]
    assert records
    graph = with_authors_projections(name, paper_model(name)[1])
    for record in records:
        macs = graph.macs.total(internal_widths(name, record["widths"]))
        assert macs == pytest.approx(record["macs"], rel=1e-7)


@pytest.mark.parametrize(
    "name, full, fraction", [("resnet50", 4.089e9, 0.455), ("resnet50_stride_on_1x1", 3.858e9, 0.4389)]
)
def test_resnet50_at_the_widths_of_the_released_run(golden, name, full, fraction):
    log = json.loads((golden / "resnet50_imagenet_log.json").read_text())
    last = log["living_channels"][-1]
    _, graph = paper_model(name)
    assert graph.macs.total(graph.widths) == pytest.approx(full, rel=2e-4)
    assert graph.macs.total(last["living_widths"]) / graph.macs.total(graph.widths) == pytest.approx(fraction, abs=5e-4)


def test_the_released_run_would_have_cost_less_if_dead_channels_had_left(golden):
    model, graph = paper_model("resnet50")
    log = read_log(golden / "resnet50_imagenet_log.json", graph)
    config = load_config(RELEASED_RUN)
    with_compactors = insert_compactors(model, graph)
    costs = {}
    for mode in MODES:
        of_mode = stages(log, with_compactors, graph, config, mode)
        num_steps = sum(stage.num_steps for stage in of_mode)
        assert num_steps == 900_000
        costs[mode] = sum(s.num_steps * s.macs for s in of_mode) / (num_steps * graph.macs.total(graph.widths))
    assert costs["off"] == pytest.approx(1.129, abs=5e-4)
    assert costs["exact"] <= 0.77
    assert costs["merge"] < costs["exact"], costs


@pytest.mark.parametrize("index", range(5))
def test_masks_are_the_authors_at_every_update(golden, index):
    record = json.loads((golden / "mask_selection.json").read_text())[index]
    graph = with_authors_projections(record["model"], paper_model(record["model"])[1])
    keys = sorted(record["row_norms"], key=int)
    norms = [np.array(record["row_norms"][key], np.float32) for key in keys]
    assert graph.widths == [len(n) for n in norms]
    full = graph.macs.total(graph.widths)
    num_chosen = 0
    for update in record["updates"]:
        selection = select_masks(
            norms,
            graph.macs,
            target_cost=record["target_fraction"] * full,
            max_chosen=num_chosen + record["channels_per_update"],
            min_channels=record["min_channels"],
        )
        num_chosen = selection.num_chosen
        assert num_chosen == update["num_masked"]
        # A quotient of two sums in float32, each good to 1e-7.
        assert selection.cost / full == pytest.approx(update["macs_fraction"], rel=2e-7)
        if update["masked"] is not None:
            # Stale masks of the authors' code do not show here: the norms stay, so a layer never loses all its masks.
            for key, mask in zip(keys, selection.masks, strict=True):
                assert np.flatnonzero(~mask).tolist() == sorted(update["masked"][key]), key


def trajectory(golden, radial: bool) -> tuple[np.ndarray, dict]:
    data = np.load(golden / "update_rule.npz")
    # OIHW -> HWIO
    to_ours = lambda kernel: tf.constant(np.transpose(kernel, (2, 3, 1, 0)))  # noqa: E731
    kernel = to_ours(data["kernels"][0])
    velocity, kernels = tf.zeros_like(kernel), []
    for gradient, mask, rate in zip(data["objective_grads"], data["masks"], data["learning_rates"], strict=True):
        kernel, velocity = update_compactor(
            kernel,
            velocity,
            to_ours(gradient),
            tf.constant(mask),
            row_norms(kernel),
            learning_rate=tf.constant(rate, tf.float32),
            lasso_strength=float(data["lasso_strength"]),
            momentum=float(data["momentum"]),
            radial=radial,
        )
        kernels.append(np.transpose(kernel.numpy(), (3, 2, 0, 1)))
    return np.stack(kernels), dict(data)


def test_paper_rule_follows_the_authors_trajectory(golden):
    ours, data = trajectory(golden, radial=False)
    assert np.abs(ours - data["kernels"][1:]).max() < 2e-6


def test_radial_rule_differs_on_purpose_and_only_on_masked_rows(golden):
    ours, data = trajectory(golden, radial=True)
    never_masked = data["masks"].all(axis=0)
    assert never_masked.any() and not never_masked.all()
    assert np.abs(ours - data["kernels"][1:])[:, never_masked].max() < 2e-6
    assert np.abs(ours - data["kernels"][1:])[:, ~never_masked].max() > 1e-3


def test_fold_is_the_authors(golden):
    data = np.load(golden / "fold.npz")
    scale = data["bn_gamma"] / np.sqrt(data["bn_variance"] + data["bn_epsilon"])
    kernel, bias = fold_arrays(
        np.transpose(data["conv_kernel"], (2, 3, 1, 0)),
        np.zeros(len(scale)),
        scale,
        data["bn_beta"] - data["bn_mean"] * scale,
        data["compactor"][:, :, 0, 0].T,
    )
    living = np.linalg.norm(data["compactor"][:, :, 0, 0], axis=1) >= data["threshold"]
    assert np.flatnonzero(~living).tolist() == data["deleted_channels"].tolist()
    assert np.abs(np.transpose(kernel[..., living], (3, 2, 0, 1)) - data["folded_kernel"]).max() < 1e-5
    assert np.abs(bias[living] - data["folded_bias"]).max() < 1e-5
