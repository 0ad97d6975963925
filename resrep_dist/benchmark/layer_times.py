"""Where the time of a run's slim model goes, layer by layer: measured, and by a table of times."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.single_layers import layer_at
from resrep_dist.benchmark.timers import single_layer, whole_model
from resrep_dist.config import Config
from resrep_dist.config.target import Runtime
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.export.convert import to_onnx
from resrep_dist.graph import Graph, flatten, trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import LatencyTable, read_table
from resrep_dist.models.keras3 import name_in_file
from resrep_dist.timing.calls import WeightedCall
from resrep_dist.timing.rounds import time_in_turn
from resrep_dist.timing.runtimes import onnx_options
from resrep_dist.training.phase import pruning_of

import numpy as np
from tensorflow import keras

_log = logging.getLogger(__name__)
_NUM_WARM_RUNS = 5
_NODE_END = "_kernel_time"


def measure_layers(
    models: Mapping[str, keras.Model], config: Config, report: Mapping[str, Any], costs: str | None, max_rounds: int
) -> dict[str, Any]:
    """Measure the layers of a slim model whose widths pruning changed, and the whole model in turn with its base.

    In ONNX Runtime the layers are measured inside of the model, by the runtime's profiler. What their sum is above the
    time of the model without it is taken off, as much from each operation. Other runtimes have no profiler that Python
    reaches: there each layer is measured alone, and scaled as in the table.

    Args:
        models: The models `base` and `slim`, as they were read from files.
        config: The configuration of the run.
        report: The report of the run, which has the widths.
        costs: Table of times, which also says runtime, threads and batch; None for ONNX or TFLite without predictions.
        max_rounds: Number of rounds after which a spread is as it is.

    Returns:
        `runtime`, `batch_size`, `num_threads`, `is_in_place`; of the whole models `base_ms`, `slim_ms`, their spreads
        and `predicted_ms` of the slim one; `table` (its processor and date), and `rows` with `name`, `measured_ms` and
        `predicted_ms` of each layer. What is not known is None.

    Raises:
        ConfigError: If the table cannot be read, or is of another model.
    """
    prune = pruning_of(config)
    # The models come from files; the configuration and the report have the names of the model as it was built.
    graph = trace(models["base"], [name_in_file(name) for name in prune.exclude], prune.residual_groups)
    channels = {name_in_file(name): entry for name, entry in report["certificate"]["channels"].items()}
    widths = [channels[name_in_file(group.name)]["kept"] // group.num_parts for group in graph.groups]
    table = read_table(costs)[0] if costs else None
    latency = _predictions(table, graph, costs)
    runtime: Runtime = table.runtime if table else ("onnx" if _has_onnx() else "tflite")
    batch_size, num_threads = (table.batch_size, table.num_threads) if table else (1, visible_cores())
    if runtime == "keras":
        num_threads = visible_cores()
    runs = [whole_model(model, runtime, batch_size, num_threads) for model in models.values()]
    base, slim = time_in_turn(runs, spread_bound=0.01, max_rounds=max_rounds)
    if runtime == "onnx":
        measured = _in_place(models["slim"], slim.milliseconds, batch_size, num_threads, max_rounds)
    else:
        scale = table.scale if table else 1.0
        measured = _alone(models["base"], graph, widths, runtime, batch_size, num_threads, scale, max_rounds)
    predicted = latency.by_layer(widths) if latency else {}
    return {
        "runtime": runtime, "batch_size": batch_size, "num_threads": num_threads, "is_in_place": runtime == "onnx",
        "base_ms": base.milliseconds, "base_spread": base.spread,
        "slim_ms": slim.milliseconds, "slim_spread": slim.spread,
        "predicted_ms": latency.total(widths) if latency else None,
        "table": (
            {"base_ms": table.base_ms, "date": table.date, "machine": table.machine} if table and latency else None
        ),
        "rows": [
            {"name": name, "measured_ms": measured.get(name), "predicted_ms": predicted.get(name)}
            for name in dict.fromkeys(call.name for call in graph.calls)
        ],
    }  # fmt: skip


def _predictions(table: LatencyTable | None, graph: Graph, costs: str | None) -> Latency | None:
    """Return what a table predicts; None without one, and if it is of other threads than TensorFlow runs with."""
    if table is None:
        return None
    latency, num_cores = Latency(table, graph, str(costs)), visible_cores()
    if table.runtime != "keras" or table.num_threads == num_cores:
        return latency
    _log.warning(
        "%s was measured with %d thread(s), and TensorFlow runs with %d here: what it predicts is left out. Measure "
        "again with --threads %d, or start this command on as many cores.",
        costs, table.num_threads, num_cores, num_cores,
    )  # fmt: skip
    return None


def _has_onnx() -> bool:
    try:
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError:
        return False
    return True


def _alone(
    model: keras.Model, graph: Graph, widths: Sequence[int], runtime: Runtime, batch_size: int, num_threads: int,
    scale: float, max_rounds: int,
) -> dict[str, float]:  # fmt: skip
    flat = flatten(model)
    calls: dict[tuple[Any, tuple[int, int]], WeightedCall] = {}
    for call in graph.calls:
        calls.setdefault((call.key, _sides(call, widths)), call)
    runs = [
        single_layer(layer_at(flat.get_layer(call.name), call, *sides), runtime, batch_size, num_threads)
        for (_, sides), call in calls.items()
    ]
    medians = time_in_turn(runs, spread_bound=0.02, max_rounds=max_rounds)
    times = dict(zip(calls, medians, strict=True))
    result: dict[str, float] = {}
    for call in graph.calls:
        of_call = times[call.key, _sides(call, widths)].milliseconds
        result[call.name] = result.get(call.name, 0.0) + scale * of_call
    return result


def _sides(call: WeightedCall, widths: Sequence[int]) -> tuple[int, int]:
    """Return the number of input and output channels of a call."""
    inputs, outputs = (sum(w if g is None else widths[g] for g, w in side) for side in (call.inputs, call.output))
    return inputs, outputs


def _in_place(
    model: keras.Model, whole_ms: float, batch_size: int, num_threads: int, num_runs: int
) -> dict[str, float]:
    """Return the time of each layer with a kernel inside of the model in ONNX Runtime, ms.

    The runtime merges a layer with what follows, and calls it by one of these layers: it is the one with a kernel that
    comes before. What cannot be told so is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(model, path)
        events = _profile(path, (batch_size, *model.input_shape[1:]), num_threads, num_runs + _NUM_WARM_RUNS)
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_NODE_END):
            times.setdefault(event["name"].removesuffix(_NODE_END), []).append(event["dur"] / 1000.0)
    layers = {layer.name: layer for layer in model.layers}
    result: dict[str, float] = {}
    means = {name: _middle_mean(milliseconds[_NUM_WARM_RUNS:]) for name, milliseconds in times.items()}
    # The profiler notes start and end of each operation, which takes as long for a small one as for a large one.
    added = max(0.0, sum(means.values()) - whole_ms) / len(means)
    for name, milliseconds in means.items():
        if not (found := [layers[part] for part in name.replace(":", "/").split("/") if part in layers]):
            continue
        if (weighted := _with_kernel(found[-1])) is not None:
            result[weighted] = result.get(weighted, 0.0) + max(0.1 * milliseconds, milliseconds - added)
    return result


def _profile(path: Path, shape: tuple[int, ...], num_threads: int, num_runs: int) -> list[dict[str, Any]]:
    import onnxruntime

    options = onnx_options(num_threads)
    options.enable_profiling, options.profile_file_prefix = True, str(path.parent / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = {session.get_inputs()[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    for _ in range(num_runs):
        session.run(None, images)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _with_kernel(layer: Any) -> str | None:
    """Return the name of the layer with a kernel whose output a layer passes on; None if there are several."""
    while not (hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel")):
        before = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else []
        if isinstance(before, list):
            return None
        layer = before
    return str(layer.name)


def _middle_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half: finer than the median of whole microseconds, and as robust."""
    ordered = np.sort(values)
    quarter = len(ordered) // 4
    return float(np.mean(ordered[quarter : len(ordered) - quarter]))
