"""Prints what a configuration would prune, without training."""

import math

from resrep_dist.cli.memory import estimate_memory
from resrep_dist.cli.reachable import print_reachable
from resrep_dist.config import Config
from resrep_dist.data.loading import load_sources
from resrep_dist.errors import UserError
from resrep_dist.graph import Graph, trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.models.building import build_model
from resrep_dist.pruning.targets import require_prunable, require_reachable_target
from resrep_dist.training.phase import plan_phase, pruning_of

from rich.console import Console
from rich.table import Table
from tensorflow import keras


def print_inspection(console: Console, config: Config, num_ranks: int = 1, costs: str | None = None) -> None:
    """Print the prunable and the refused convolutions, what targets would leave, and the memory of a training step.

    Args:
        console: Where it is printed.
        config: The configuration.
        num_ranks: Number of ranks that share the global batch.
        costs: Table of times, for a target that counts something else.

    Raises:
        ConfigError: If the model cannot be built, or the table is of another one.
        ModelError: If the model has nothing to prune.
    """
    model = build_model(config.model, config.task)
    if config.prune is None:
        console.print(f"{model.name}: trained without pruning, since there is no section `prune`")
        _print_memory(console, model, config, num_ranks)
        return
    graph = trace(model, config.prune.exclude, config.prune.residual_groups)
    require_prunable(model.name, graph)
    _print_layers(console, model.name, graph)
    print_reachable(console, graph, config.prune, costs)
    _print_schedule(console, config, graph)
    _print_memory(console, insert_compactors(model, graph), config, num_ranks)


def _print_schedule(console: Console, config: Config, graph: Graph) -> None:
    """Print when masks change and rows die, which depends on the number of training samples."""
    require_reachable_target(graph, pruning_of(config))
    try:
        num_samples = len(load_sources(config.data, config.model, config.task)[0])
    except UserError as error:
        console.print(f"The schedule of the masks is not known without the data: {error}", markup=False)
        return
    masks = plan_phase(config, graph, num_samples).require_masks()
    console.print(masks.describe(), markup=False)
    for warning in masks.warnings():
        console.print(warning, markup=False)


def _print_memory(console: Console, model: keras.Model, config: Config, num_ranks: int) -> None:
    rank_batch_size = math.ceil(config.data.global_batch_size / num_ranks)
    num_micro_batches = config.training.gradient_accumulation_steps
    has_average = config.train.weight_average_decay is not None
    model = with_precision(model, config.training.precision)
    estimate = estimate_memory(model, rank_batch_size, num_micro_batches, has_average)
    division = f" in {num_micro_batches} micro-batches" if num_micro_batches > 1 else ""
    console.print(
        f"Memory of a training step on each of {num_ranks} rank(s), estimated, {rank_batch_size} samples{division}: "
        f"{estimate.total / 2**20:,.0f} MiB = weights {estimate.weights / 2**20:,.0f} + gradients and momentum "
        f"{estimate.gradients_and_momentum / 2**20:,.0f} + kept for the backward pass "
        f"{estimate.activations / 2**20:,.0f}; working space of the device's libraries comes on top"
    )


def _print_refused(console: Console, graph: Graph) -> None:
    """Print each reason once, with the convolutions that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in graph.refused.items():
        by_reason.setdefault(reason, []).append(name)
    table = Table(title="left as they are")
    for heading in ("number", "convolutions", "because"):
        table.add_column(heading, justify="right" if heading == "number" else "left")
    for reason, names in by_reason.items():
        table.add_row(str(len(names)), ", ".join(names), reason)
    console.print(table)


def _print_layers(console: Console, name: str, graph: Graph) -> None:
    table = Table(title=f"{name}: prunable convolutions")
    for heading in ("convolution", "channels", "multiply-adds per channel", "consumed by"):
        table.add_column(heading, justify="left" if heading in ("convolution", "consumed by") else "right")
    costs = graph.macs.per_channel(graph.widths)
    for group, cost in zip(graph.groups, costs, strict=True):
        names = ", ".join(layer.name for layer in group.layers)
        names += f" ({group.num_parts} parts alike)" if group.num_parts > 1 else ""
        table.add_row(names, str(group.num_channels), f"{cost // group.num_parts:,}", ", ".join(group.consumers))
    console.print(table)
    _print_refused(console, graph)
    if graph.uncounted:
        console.print(f"Not counted, since their multiply-adds are not known: {', '.join(graph.uncounted)}")
