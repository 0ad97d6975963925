"""What `resrep benchmark latency` has measured of a run: the files, and the layers of the slim model."""

import dataclasses
from typing import Any, NamedTuple

from resrep_dist.config.tasks import score_of
from resrep_dist.models.files import file_sha256
from resrep_dist.models.result_folder import current_folder
from resrep_dist.reporting.run_folder import RunRecord

RUNTIMES = {"keras": "Keras", "tflite": "TFLite", "onnx": "ONNX"}
"""The runtimes of the page, by the formats in float, with their names."""
VARIANTS = ("base", "slim", "slim, 8 bits")
"""What is compared in each."""


@dataclasses.dataclass(frozen=True)
class FilePoint:
    """A file that was timed with batches of one size."""

    runtime: str
    """One of `RUNTIMES`."""
    variant: str
    """One of `VARIANTS`."""
    batch_size: int
    """Number of images in a batch."""
    milliseconds: float
    """Median time of a batch."""
    spread: float | None
    """Half of the 95 % confidence interval of the median, as a fraction of it; None in files of 0.2.0 and before."""
    size_bytes: int | None
    """Size of the file; None if it is not known."""
    score: float | None
    """Score on the validation set, percent; None if it is not known."""


class LayerPoint(NamedTuple):
    """A layer of the slim model, or several, or what is no layer."""

    name: str
    """Name of the layer."""
    measured_ms: float | None
    """Measured time; None if the runtime did not tell it."""
    predicted_ms: float | None
    """Time by a table; None without one."""


def file_points(run: RunRecord) -> list[FilePoint]:
    """Return the files of the page that were timed, by runtime, variant and batch size.

    Args:
        run: A finished run.
    """
    latency = run.latency or {}
    rows = {(row["format"], row["batch_size"]): row for row in latency.get("rows", [])}
    files = {(file["format"], file["model"]): file for file in latency.get("files", [])}
    points = []
    for runtime in RUNTIMES:
        for variant in VARIANTS:
            model, is_in_eight_bits = variant.partition(",")[0], variant != variant.partition(",")[0]
            format_name = f"{runtime}_int8" if is_in_eight_bits else runtime
            file = files.get((format_name, model), {})
            score = file.get("score")
            if not is_in_eight_bits and model in run.models:
                # Float files have the outputs of the Keras model, or they would not have been written.
                score = score_of(run.models[model]).value
            for (name, batch_size), row in rows.items():
                if name == format_name:
                    time, spread = row[f"{model}_ms"], row.get(f"{model}_spread")
                    size = file.get("size_bytes")
                    points.append(FilePoint(runtime, variant, batch_size, time, spread, size, score))
    return points


def layer_points(layers: dict[str, Any], max_layers: int) -> list[LayerPoint]:
    """Return the layers of the slim model from the slowest down, and what the rest of the time is.

    Args:
        layers: The section `layers` of the measurement.
        max_layers: Number of layers; the others are one point.
    """
    rows = [LayerPoint(row["name"], row["measured_ms"], row["predicted_ms"]) for row in layers["rows"]]
    rows.sort(key=lambda row: -(row.measured_ms or row.predicted_ms or 0.0))
    shown, others = rows[:max_layers], rows[max_layers:]
    result = list(shown)
    if others:
        result.append(LayerPoint(f"{len(others)} other layers", *_sums(others)))
    measured, predicted = _sums(rows)
    if measured is not None:
        whole = layers.get("predicted_ms")
        is_predicted = predicted is not None and whole is not None
        rest = max(0.0, whole - predicted) if is_predicted else None  # type: ignore[operator]
        result.append(LayerPoint("everything else", max(0.0, layers["slim_ms"] - measured), rest))
    return result


def _sums(rows: list[LayerPoint]) -> tuple[float | None, float | None]:
    """Return the sums of the measured and of the predicted times; None where one is missing."""
    sides = [row.measured_ms for row in rows], [row.predicted_ms for row in rows]
    measured, predicted = (None if None in side else sum(filter(None, side)) for side in sides)
    return measured, predicted


def is_of_an_earlier_model(run: RunRecord) -> bool:
    """Return True if the slim model has been merged again since it was timed.

    Args:
        run: A finished run with measured latencies.
    """
    known = (run.latency or {}).get("slim_sha256")
    path = current_folder(run.workdir / "slim") / "model.h5"
    return known is not None and path.exists() and file_sha256(path) != known
