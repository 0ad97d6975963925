"""What a configuration would prune, before any training."""

from resrep_dist.config import Config
from resrep_dist.errors import ModelError
from resrep_dist.graph import trace
from resrep_dist.models import build_model

from rich.console import Console
from rich.table import Table


def print_inspection(console: Console, config: Config) -> None:
    """Tables of the prunable convolutions and of the refused ones, and the multiply-adds.

    Raises:
        ModelError: for a model with nothing to prune.
    """
    model = build_model(config.model)
    graph = trace(model, config.prune.exclude, config.prune.residual_groups)
    if not graph.groups:
        raise ModelError(f"model {model.name}: no convolution can be pruned")
    table = Table(title=f"{model.name}: prunable convolutions")
    for heading in ("convolution", "channels", "multiply-adds per channel", "consumed by"):
        table.add_column(heading, justify="left" if heading in ("convolution", "consumed by") else "right")
    costs = graph.macs.per_channel(graph.widths)
    for group, cost in zip(graph.groups, costs, strict=True):
        names = ", ".join(layer.name for layer in group.layers)
        table.add_row(names, str(group.width), f"{cost:,}", ", ".join(group.consumers))
    console.print(table)
    refused = Table(title="left as they are")
    refused.add_column("convolution")
    refused.add_column("because")
    for name, reason in graph.refused.items():
        refused.add_row(name, reason)
    console.print(refused)
    if graph.uncounted:
        console.print(f"Not counted, since their multiply-adds are not known: {', '.join(graph.uncounted)}")
    total = graph.macs.total(graph.widths)
    floor = graph.macs.total([min(config.prune.min_channels, width) for width in graph.widths])
    console.print(
        f"Multiply-adds (convolutions and dense layers, one image): {total:,}; "
        f"target {config.prune.target_macs_fraction * total:,.0f} ({100 * config.prune.target_macs_fraction:.1f} %); "
        f"lowest possible {floor:,} ({100 * floor / total:.1f} %)"
    )
