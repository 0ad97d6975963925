"""Measures how long the layers that pruning changes take in a runtime, by their widths: `resrep measure`."""

from resrep_dist.benchmark.single_layers import cheap_layer, layer_at
from resrep_dist.benchmark.timers import gpu_name, require_runtime, single_layer, whole_model
from resrep_dist.config import Config
from resrep_dist.config.target import Runtime
from resrep_dist.graph import Graph, flatten, trace
from resrep_dist.graph.latency_table import LatencyTable, table_from
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.models.building import build_model
from resrep_dist.monitoring.quiet import without_lines
from resrep_dist.pruning.targets import require_prunable
from resrep_dist.timing.grids import Point
from resrep_dist.timing.measuring import Progress, Task, measure
from resrep_dist.timing.runtimes import Run
from resrep_dist.training.phase import pruning_of

import numpy as np
from tensorflow import keras

# Shares of the channels of whole models that are measured, beside the one with all channels.
_SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
# Other numbers of channels can be several times as slow. A selection avoids them, and a fit to them would mislead it.
_UNIT = 4
_LINES_OF_TFLITE = ["^INFO: Created TensorFlow Lite XNNPACK delegate"]


class Measured:
    """What is measured of a configuration: its layers at any widths, and whole models, as Keras models.

    The whole models have random widths, the first of the merged ones all channels.

    Args:
        config: The model, and what of it is pruned.
        runtime: What runs it.
        batch_size: Number of images in a batch.

    Raises:
        UserError: If the model cannot be pruned.
    """

    def __init__(self, config: Config, runtime: Runtime, batch_size: int) -> None:
        prune = pruning_of(config)
        model = build_model(config.model, config.task)
        graph = trace(model, prune.exclude, prune.residual_groups)
        require_prunable(model.name, graph)
        self._flat = flatten(model)
        merged = _merged_models(model, graph)
        self.models = [model, *(slim for _, slim in merged)]
        """The base model, and merged ones."""
        # ONNX Runtime passes channels on in blocks, and takes a layer that receives them otherwise for another one. So
        # there a layer is measured behind another, whose own time is taken off.
        behind = [
            call.name
            for call in graph.calls
            if runtime == "onnx" and isinstance(self._flat.get_layer(call.name), keras.layers.Conv2D)
        ]
        self.task = Task(
            config.model.name, runtime, batch_size, graph.calls, tuple(behind), tuple(widths for widths, _ in merged)
        )
        """What is measured, without models."""

    def layer(self, point: Point) -> keras.Model:
        """Return a layer at its widths, behind another one if the task says so."""
        call, inputs, outputs = point
        is_behind = call.name in self.task.behind
        return layer_at(self._flat.get_layer(call.name), call, inputs, outputs, behind_another=is_behind)

    def before(self, point: Point) -> keras.Model:
        """Return the other one."""
        return cheap_layer(point[0], point[1])


class _KerasFiles:
    """Makes models ready to run as they are needed; see `timing.measuring.Files`."""

    def __init__(self, measured: Measured, runtime: Runtime, num_threads: int) -> None:
        self._measured, self._setting = measured, (runtime, measured.task.batch_size, num_threads)

    def layer(self, point: Point) -> Run:
        return single_layer(self._measured.layer(point), *self._setting)

    def before(self, point: Point) -> Run:
        return single_layer(self._measured.before(point), *self._setting)

    def whole(self, number: int) -> Run:
        return whole_model(self._measured.models[number], *self._setting)


def measure_costs(
    config: Config, runtime: Runtime, num_threads: int, batch_size: int, progress: Progress
) -> LatencyTable:
    """Measure the layers of a model whose width pruning changes, alone at many widths, and some whole models.

    By the times of the whole models the sum of the layers is scaled, and a constant is added for all that pruning does
    not change.

    Args:
        config: The model, and what of it is pruned.
        runtime: What runs the layers.
        num_threads: Number of threads.
        batch_size: Number of images in a batch.
        progress: Is told how far it is.

    Raises:
        UserError: If the model cannot be pruned, or the runtime is not installed.
    """
    versions = require_runtime(runtime, num_threads)
    measured = Measured(config, runtime, batch_size)
    with without_lines(_LINES_OF_TFLITE):
        files = _KerasFiles(measured, runtime, num_threads)
        table = measure(measured.task, files, num_threads=num_threads, versions=versions, progress=progress)
    if runtime == "keras" and (gpu := gpu_name()):
        table["machine"]["gpu"] = gpu
    return table_from(table)


def _in_units(wanted: float, width: int) -> int:
    """Return a width near the wanted one, of at most `width` channels, as a selection takes it."""
    unit = max(1, min(_UNIT, width // 4))
    return min(width, unit * max(1, round(wanted / unit)))


def _merged_models(model: keras.Model, graph: Graph) -> list[tuple[tuple[int, ...], keras.Model]]:
    """Return merged models of random widths, the first with all channels."""
    random, result = np.random.default_rng(0), []
    pruned = insert_compactors(model, graph)
    for share in (1.0, *_SHARES):
        widths = tuple(
            width if share == 1 else _in_units(share * width * random.uniform(0.6, 1.4), width)
            for width in graph.widths
        )
        dead = [np.arange(full) >= width for full, width in zip(graph.widths, widths, strict=True)]
        result.append((widths, delete_channels(fold_model(pruned, graph, dead), graph, dead)))
    return result
