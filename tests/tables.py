"""Tables of times for the tests, without a measurement."""

from collections.abc import Callable
from pathlib import Path

from resrep_dist.graph import Graph
from resrep_dist.graph.latency_table import LatencyTable
from resrep_dist.timing.table import LayerTimes, Steps

VERSIONS = {"onnx": {"onnxruntime": "1.0"}, "tflite": {"ai-edge-litert": "2.0"}, "keras": {"tensorflow": "2.0"}}


def pair_time(inputs: int, outputs: int) -> float:
    """A time that a polynomial of the widths has."""
    return 0.001 * inputs * outputs + 0.01


def table_for(graph: Graph, time: Callable[[int, int], float] = pair_time, **changes) -> LatencyTable:
    """A table whose layers take a known time."""
    layers, base = {}, 0.0
    for call in graph.calls:
        signature, inputs, outputs = call.key
        base += time(inputs, outputs)
        changing = call.changes
        sides = [sorted({max(1, full // 4), max(1, full // 2), full}) if is_changed else [full]
                 for full, is_changed in zip((inputs, outputs), changing, strict=True)]  # fmt: skip
        times = tuple(tuple(time(row, column) for column in sides[1]) for row in sides[0])
        spreads = tuple(tuple(0.01 for _ in row) for row in times)
        names = tuple(other.name for other in graph.calls if other.key == call.key)
        layers[call.key] = LayerTimes(
            names, signature, tuple(sides[0]), tuple(sides[1]), times, spreads, Steps(), Steps()
        )
    values = {
        "model": "small", "runtime": "onnx", "batch_size": 1, "num_threads": 1, "machine": {"processor": "one"},
        "date": "2026-01-01", "spread_bound": 0.02, "base_ms": base + 0.5, "constant_ms": 0.5, "scale": 1.0,
        "layers": tuple(layers.values()),
    } | changes  # fmt: skip
    return LatencyTable(versions=VERSIONS[values["runtime"]], **values)


def write_table(graph: Graph, path: Path, time: Callable[[int, int], float] = pair_time, **changes) -> str:
    """Write such a table; return the path as text."""
    table_for(graph, time, **changes).write(path)
    return str(path)
