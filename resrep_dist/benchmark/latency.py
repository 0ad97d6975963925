"""Benchmark of inference on this machine: base and slim model in every format, in turn."""

import datetime
import functools
import logging
import platform
import tempfile
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.inference_files import InferenceFile, files_in_every_format, noise_for
from resrep_dist.benchmark.layer_times import measure_layers
from resrep_dist.config import Config, load_config
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import UserError
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.merge import merge
from resrep_dist.models.building import build_model
from resrep_dist.models.files import file_sha256, load_model
from resrep_dist.models.result_folder import current_folder
from resrep_dist.pruning.deadness import kill_channels
from resrep_dist.pruning.goals import goal_of
from resrep_dist.pruning.rules import select_masks
from resrep_dist.pruning.targets import require_prunable
from resrep_dist.reporting.table import find_report, read_report
from resrep_dist.runs.workdir import config_of_run
from resrep_dist.timing.rounds import Median, time_in_turn
from resrep_dist.training.phase import pruning_of

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow import keras

_log = logging.getLogger(__name__)
_BATCH_SIZES = (1, 32)
_SPREAD_BOUND = 0.02


def benchmark_latency(path: Path, num_rounds: int, costs: str | None = None) -> dict[str, Any]:
    """Measure the time of a batch of 1 and of 32 images for the base and the slim model in every format.

    Args:
        path: Folder of a finished run, or a configuration, to measure before training: then the models have random
            weights, and the slim model is pruned at random to the target.
        num_rounds: Largest number of rounds; in each, every file of a runtime is timed in turn. A file takes part until
            half of the 95 % confidence interval of its median is below 2 % of it.
        costs: Table of times that predicts those of the layers; None for the run's own, if its target has one.

    Returns:
        `rows` with the median times `base_ms` and `slim_ms`, their spreads and their ratio `speedup` for each format
        and batch size; `files` with the size of each file, and the score of eight-bit exports of the run; `layers` of a
        run, see `measure_layers`; the multiply-adds `macs` of both models, and the setting.

    Raises:
        ConfigError: If the table cannot be read, or is of another model.
        UserError: If the run is not finished, or the configuration is not valid.
    """
    is_run = path.is_dir()
    paths = _paths_of_run(path) if is_run else {}
    models = {name: load_model(file) for name, file in paths.items()}
    models = models or _random_models(load_config(path, to_start=False))
    # A table of another model is refused before minutes of measurement.
    layers = _layers(path, models, costs, num_rounds) if is_run else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = files_in_every_format(models, paths, Path(folder), path if is_run else None)
        for batch_size in _BATCH_SIZES:
            rows += _rows(_measure(files, batch_size, num_rounds), batch_size)
            _log.info("Batch of %d done.", batch_size)
    graphs = {name: trace(model) for name, model in models.items()}
    return {
        "model": models["base"].name,
        "macs": {name: graph.macs.total(graph.widths) for name, graph in graphs.items()},
        "is_trained": is_run,
        "slim_sha256": file_sha256(paths["slim"]) if is_run else None,
        "rows": rows,
        "files": [
            {"format": file.format, "model": file.model, "size_bytes": file.size_bytes, "score": file.score}
            for file in files
        ],
        "layers": layers,
        "num_rounds": num_rounds,
        "spread_bound": _SPREAD_BOUND,
        "num_cores": visible_cores(),
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def print_latency_benchmark(console: Console, result: dict[str, Any]) -> None:
    """Print the times of both models, one row for each format and batch size."""
    rounds = f"medians of up to {result['num_rounds']} rounds"
    table = Table(title=f"{result['model']}, {rounds}, {result['num_cores']} cores")
    for heading in ("format", "batch", "base", "slim", "times faster"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for row in result["rows"]:
        times = [f"{row[f'{name}_ms']:.3g} ms ± {100 * row[f'{name}_spread']:.0f} %" for name in ("base", "slim")]
        table.add_row(row["format"], str(row["batch_size"]), *times, f"{row['speedup']:.2f}")
    console.print(table)
    macs = result["macs"]
    kind = "as trained" if result["is_trained"] else "random weights, pruned at random to the target"
    console.print(f"The slim model ({kind}) has {100 * macs['slim'] / macs['base']:.1f} % of the multiply-adds.")
    spreads = [row[f"{name}_spread"] for row in result["rows"] for name in ("base", "slim")]
    if wide := [spread for spread in spreads if spread > 2 * result["spread_bound"]]:
        console.print(
            f"[bold]Not known well:[/bold] {len(wide)} of {len(spreads)} medians vary by more than "
            f"{200 * result['spread_bound']:.0f} %; measure again when the machine is free."
        )


def _paths_of_run(workdir: Path) -> dict[str, Path]:
    paths = {"base": workdir / "base" / "model.h5", "slim": current_folder(workdir / "slim") / "model.h5"}
    if not paths["slim"].exists() and (current_folder(workdir / "final") / "model.h5").exists():
        raise UserError(
            f"{workdir}: this run pruned nothing, its configuration has no section `prune`, so there is no slim model "
            "to compare; give a run that prunes, or a configuration with that section"
        )
    for path in paths.values():
        if not path.exists():
            raise UserError(f"{path}: there is no such file; give a finished run of `resrep train`, or a configuration")
    return paths


def _layers(workdir: Path, models: dict[str, keras.Model], costs: str | None, max_rounds: int) -> dict[str, Any] | None:
    if not (workdir / "config.yaml").exists() or find_report(workdir) is None:
        return None
    # Its table of times is the copy in the folder.
    config = config_of_run(workdir)
    if config.prune is None:
        return None
    return measure_layers(models, config, read_report(workdir), costs or config.prune.goal.costs, max_rounds)


def _random_models(config: Config) -> dict[str, keras.Model]:
    prune = pruning_of(config)
    base = build_model(config.model, config.task)
    graph = trace(base, prune.exclude, prune.residual_groups)
    require_prunable(base.name, graph)
    random = np.random.default_rng(config.seed)
    goal = goal_of(graph, prune)
    selection = select_masks(
        [random.uniform(size=width) for width in graph.widths],
        goal.cost,
        target_cost=goal.limit,
        max_chosen=sum(graph.widths),
        min_channels=prune.min_channels,
        round_to=graph.multiples(prune.round_to),
    )
    pruned = insert_compactors(base, graph)
    kill_channels(pruned, graph, [mask == 0 for mask in selection.masks])
    slim, _ = merge(pruned, graph, noise_for(base, config.merge.num_images), tolerance=config.merge.tolerance)
    return {"base": base, "slim": slim}


def _measure(files: list[InferenceFile], batch_size: int, num_rounds: int) -> dict[tuple[str, str], Median]:
    """Return the median time of a batch by format and model."""
    images = np.random.default_rng(0).normal(size=(batch_size, *files[0].inference.input_shape)).astype(np.float32)
    result: dict[tuple[str, str], Median] = {}
    # One runtime after another, since the idle threads of a library keep a core busy for a while.
    for runtime in dict.fromkeys(file.runtime for file in files):
        in_turn = [file for file in files if file.runtime == runtime]
        runs = [functools.partial(file.inference.run, images) for file in in_turn]
        medians = time_in_turn(runs, spread_bound=_SPREAD_BOUND, max_rounds=num_rounds)
        result |= {(file.format, file.model): median for file, median in zip(in_turn, medians, strict=True)}
    return result


def _rows(times: dict[tuple[str, str], Median], batch_size: int) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(name for name, _ in times):
        base, slim = times[name, "base"], times[name, "slim"]
        rows.append(
            {
                "format": name, "batch_size": batch_size, "base_ms": base.milliseconds, "slim_ms": slim.milliseconds,
                "base_spread": base.spread, "slim_spread": slim.spread,
                "speedup": base.milliseconds / slim.milliseconds,
            }
        )  # fmt: skip
    return rows
