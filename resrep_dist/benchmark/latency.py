"""Benchmark of inference on this machine: base and slim model in every format, in turn."""

import logging
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import UserError
from resrep_dist.export.convert import FORMATS, export_model
from resrep_dist.export.eight_bits import EIGHT_BIT_FORMATS, write_eight_bits
from resrep_dist.export.inference import Inference, from_keras, open_model_file
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.merge import merge
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model
from resrep_dist.models.result_folder import current_folder
from resrep_dist.pruning.deadness import kill_channels
from resrep_dist.pruning.goals import goal_of
from resrep_dist.pruning.rules import select_masks
from resrep_dist.pruning.targets import require_prunable
from resrep_dist.training.phase import pruning_of

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow import keras

_log = logging.getLogger(__name__)
_BATCH_SIZES = (1, 32)
_NUM_WARM_ROUNDS = 5
_NUM_CALIBRATION_IMAGES = 8


def benchmark_latency(path: Path, num_rounds: int) -> dict[str, Any]:
    """Measure the time of a batch of 1 and of 32 images for the base and the slim model in every format.

    Args:
        path: Folder of a finished run, or a configuration, to measure before training: then the models have random
            weights, and the slim model is pruned at random to the target.
        num_rounds: Number of batches of each model, in turn.

    Returns:
        `rows` with the median times `base_ms` and `slim_ms` and their ratio `speedup` for each format and batch size,
        the multiply-adds `macs` of both models, and the setting.

    Raises:
        UserError: If the run is not finished, or the configuration is not valid.
    """
    models = _models_of_run(path) if path.is_dir() else _random_models(load_config(path))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        functions = _in_every_format(models, Path(folder))
        for batch_size in _BATCH_SIZES:
            times = _measure(functions, batch_size, num_rounds)
            for name in dict.fromkeys(name for name, _ in functions):
                base_ms, slim_ms = (statistics.median(times[name, model]) for model in models)
                row = {"format": name, "batch_size": batch_size, "base_ms": base_ms, "slim_ms": slim_ms}
                rows.append(row | {"speedup": base_ms / slim_ms})
            _log.info("Batch of %d done.", batch_size)
    graphs = {name: trace(model) for name, model in models.items()}
    return {
        "model": models["base"].name,
        "macs": {name: graph.macs.total(graph.widths) for name, graph in graphs.items()},
        "is_trained": path.is_dir(),
        "rows": rows,
        "num_rounds": num_rounds,
        "num_cores": visible_cores(),
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
    }


def print_latency_benchmark(console: Console, result: dict[str, Any]) -> None:
    """Print the times of both models, one row for each format and batch size."""
    table = Table(title=f"{result['model']}, medians of {result['num_rounds']} rounds, {result['num_cores']} cores")
    for heading in ("format", "batch", "base", "slim", "times faster"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for row in result["rows"]:
        times = (f"{row['base_ms']:.2f} ms", f"{row['slim_ms']:.2f} ms", f"{row['speedup']:.2f}")
        table.add_row(row["format"], str(row["batch_size"]), *times)
    console.print(table)
    macs = result["macs"]
    kind = "as trained" if result["is_trained"] else "random weights, pruned at random to the target"
    console.print(f"The slim model ({kind}) has {100 * macs['slim'] / macs['base']:.1f} % of the multiply-adds.")


def _models_of_run(workdir: Path) -> dict[str, keras.Model]:
    paths = {"base": workdir / "base" / "model.h5", "slim": current_folder(workdir / "slim") / "model.h5"}
    for path in paths.values():
        if not path.exists():
            raise UserError(f"{path}: there is no such file; give a finished run of `resrep train`, or a configuration")
    return {name: load_model(path) for name, path in paths.items()}


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
        round_to=prune.round_to,
    )
    pruned = insert_compactors(base, graph)
    kill_channels(pruned, graph, [mask == 0 for mask in selection.masks])
    slim, _ = merge(pruned, graph, _images(base, config.merge.num_images), tolerance=config.merge.tolerance)
    return {"base": base, "slim": slim}


def _images(model: keras.Model, num_images: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_images, *model.input_shape[1:])).astype(np.float32)


def _in_every_format(models: dict[str, keras.Model], folder: Path) -> dict[tuple[str, str], Inference]:
    """Return the models by format and name; formats that cannot be written on this machine are left out and logged."""
    functions = {("keras", name): from_keras(model) for name, model in models.items()}
    for format_name in (*FORMATS, *EIGHT_BIT_FORMATS):
        try:
            made = {(format_name, name): _write(model, format_name, folder / name) for name, model in models.items()}
        except (UserError, RuntimeError) as error:
            _log.warning("Left out: %s", error)
            continue
        functions |= {key: open_model_file(path) for key, path in made.items()}
    return functions


def _write(model: keras.Model, format_name: str, folder: Path) -> Path:
    if format_name in FORMATS:
        return export_model(model, format_name, folder, _images(model, 32), 1e-3).path
    path = folder / EIGHT_BIT_FORMATS[format_name].file_name
    # How long an operation takes does not depend on the scale of its integers, so noise calibrates it as well.
    write_eight_bits(model, format_name, path, _images(model, _NUM_CALIBRATION_IMAGES))
    return path


def _measure(
    functions: dict[tuple[str, str], Inference], batch_size: int, num_rounds: int
) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {key: [] for key in functions}
    images = np.random.default_rng(0).normal(size=(batch_size, *next(iter(functions.values())).input_shape))
    images = images.astype(np.float32)
    # One format after another, since the idle threads of a library keep a core busy for a while.
    for format_name in dict.fromkeys(name for name, _ in functions):
        in_turn = {key: inference for key, inference in functions.items() if key[0] == format_name}
        for number in range(num_rounds + _NUM_WARM_ROUNDS):
            for key, inference in in_turn.items():
                start = time.perf_counter()
                inference.run(images)
                if number >= _NUM_WARM_ROUNDS:
                    times[key].append(1000.0 * (time.perf_counter() - start))
    return times
