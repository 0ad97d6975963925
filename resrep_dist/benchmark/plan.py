"""Predicts training steps on more ranks from the measured step of one rank and the time of a ring all-reduce."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.config import Config
from resrep_dist.errors import UserError

from rich.console import Console
from rich.table import Table

COMPRESSIONS = ("none", "fp16")


def ring_allreduce_seconds(num_bytes: float, num_ranks: int, bandwidth: float, latency_seconds: float) -> float:
    """Return the time of a ring all-reduce of N ranks, seconds.

    It takes 2 (N - 1) messages of 1/N of the bytes, one after the other on every link. Source: Patarasuk and Yuan,
    Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009.

    Args:
        num_bytes: Number of bytes that are reduced.
        num_ranks: Number of ranks.
        bandwidth: Bandwidth of a link in one direction, bytes per second.
        latency_seconds: Latency of a message.
    """
    num_messages = 2 * (num_ranks - 1)
    return num_messages * (num_bytes / num_ranks / bandwidth + latency_seconds)


def plan_step_seconds(compute_seconds: float, reduce_seconds: float, overlap: float) -> float:
    """Return the time of a step, seconds.

    Args:
        compute_seconds: Time of its computation.
        reduce_seconds: Time of its collective.
        overlap: Fraction of the computation that runs at the same time as the collectives. The first of them start when
            their gradients are computed, while others still are.
    """
    return compute_seconds + max(0.0, reduce_seconds - overlap * compute_seconds)


def read_steps(path: Path, config: Config) -> dict[str, Any]:
    """Read the result of `benchmark_steps` from a `benchmark.json`.

    Args:
        path: The file.
        config: The configuration whose model must have been measured.

    Raises:
        UserError: If the file has no such result, or it is of another model or of several ranks.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        steps = {**document["steps"], "arms": document["arms"]}
        num_ranks, measured = steps["num_ranks"], (steps["model"], steps["image_size_pixels"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--benchmark {path}: no measured steps ({type(error).__name__}: {error}); "
            "`resrep benchmark steps CONFIG` writes them"
        ) from None
    if measured != (expected := (config.model.name, config.model.image_size)):
        raise UserError(
            f"--benchmark {path}: measured on {measured[0]} at {measured[1]} px, expected the config's "
            f"{expected[0]} at {expected[1]} px; run `resrep benchmark steps` with this config"
        )
    if num_ranks != 1:
        raise UserError(
            f"--benchmark {path}: measured on {num_ranks} ranks, expected 1, since their times include a collective; "
            "run `resrep benchmark steps CONFIG` as a single process"
        )
    return steps


def plan(
    steps: dict[str, Any],
    ranks: Sequence[int],
    bandwidth_gbit: float,
    latency_microseconds: float = 50.0,
    overlap: float = 0.0,
) -> dict[str, Any]:
    """Predict the steps of every measured arm on several ranks, with float32 and with float16 gradients.

    Every rank has the batch that was measured, so the global batch is larger with more ranks.

    Args:
        steps: The result of `benchmark_steps` on one rank.
        ranks: Numbers of ranks, in any order.
        bandwidth_gbit: Bandwidth of a link in one direction, 1e9 bits per second.
        latency_microseconds: Latency of a message.
        overlap: As in `plan_step_seconds`.

    Returns:
        `rows`, one for each arm, compression and number of ranks, which ascends, with `step_ms`, `allreduce_ms`,
        `images_per_second` and `efficiency`, the fraction of the step that is computation; and the setting.
    """
    rows = [
        {"arm": arm, "compression": compression, "num_ranks": num_ranks}
        | _predict(figures, compression, num_ranks, bandwidth_gbit, latency_microseconds, overlap)
        for arm, figures in steps["arms"].items()
        for compression in COMPRESSIONS
        for num_ranks in sorted(set(ranks))
    ]
    for row in rows:
        row["images_per_second"] = row["num_ranks"] * steps["global_batch_size_images"] / (row["step_ms"] / 1000.0)
    return {
        "model": steps["model"],
        "image_size_pixels": steps["image_size_pixels"],
        "images_per_rank": steps["global_batch_size_images"],
        "bandwidth_gbit_per_second": bandwidth_gbit,
        "latency_microseconds": latency_microseconds,
        "overlap": overlap,
        "rows": rows,
    }


def _predict(
    figures: dict[str, Any],
    compression: str,
    num_ranks: int,
    bandwidth_gbit: float,
    latency_microseconds: float,
    overlap: float,
) -> dict[str, Any]:
    compute, latency_seconds = figures["step_ms_median"] / 1000.0, latency_microseconds * 1e-6
    halved = figures["gradient_bytes"] / 2 if compression == "fp16" else 0
    num_bytes = figures["reduced_bytes"] - halved
    reduce = ring_allreduce_seconds(num_bytes, num_ranks, bandwidth_gbit * 1e9 / 8, latency_seconds)
    if compression == "fp16":
        # The tensors that stay float32 need a second collective, since a collective has one type.
        reduce += ring_allreduce_seconds(0, num_ranks, math.inf, latency_seconds)
    step = plan_step_seconds(compute, reduce, overlap)
    return {"step_ms": 1000.0 * step, "allreduce_ms": 1000.0 * reduce, "efficiency": compute / step}


def print_plan(console: Console, result: dict[str, Any]) -> None:
    """Print one row for each arm and type of the gradients, with a column for each number of ranks."""
    ranks = sorted({row["num_ranks"] for row in result["rows"]})
    table = Table(
        title=f"{result['model']}, {result['image_size_pixels']} px, {result['images_per_rank']} images per rank, "
        f"{result['bandwidth_gbit_per_second']:g} Gbit/s: ms per step (share of the time that computes)"
    )
    table.add_column("arm", no_wrap=True)
    table.add_column("gradients")
    for num_ranks in ranks:
        table.add_column(f"{num_ranks} ranks", justify="right")
    cells: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        cell = f"{row['step_ms']:.1f} ({100 * row['efficiency']:.0f} %)"
        cells.setdefault((row["arm"], row["compression"]), []).append(cell)
    for (arm, compression), values in cells.items():
        table.add_row(arm, "float16" if compression == "fp16" else "float32", *values)
    console.print(table)
    console.print("Predicted from the step of one rank and a ring all-reduce, with nothing else on the links.")
