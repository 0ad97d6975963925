"""The sections of measured latency: how fast and how large the models are in each runtime, and where the time goes."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.config.tasks import score_of
from resrep_dist.reporting.latency_figures import latency_picture, layers_picture
from resrep_dist.reporting.latency_points import (
    RUNTIMES,
    FilePoint,
    file_points,
    is_of_an_earlier_model,
    layer_points,
)
from resrep_dist.reporting.parts import Picture, Section, Table
from resrep_dist.reporting.run_folder import RunRecord

_HEADING = "Measured latency and size"
# Numbers and their units stay on one line.
_SPACE = "\N{NO-BREAK SPACE}"
_MAX_LAYERS = 20


def measured_sections(runs: Sequence[RunRecord], *, is_alone: bool) -> list[Section]:
    """Return a section for each run that was measured, and the command that measures the others.

    Args:
        runs: Finished runs.
        is_alone: True if the page is of one run.
    """
    pruned = [run for run in runs if "slim" in run.models]
    sections = []
    for number, run in enumerate(pruned):
        suffix, of_run = ("", "") if is_alone else (f"_{number}", f" ({run.name})")
        if run.latency:
            sections.append(_files_section(run, suffix, of_run))
            if layers := run.latency.get("layers"):
                picture = Picture(f"report_layers{suffix}", layers_picture(layer_points(layers, _MAX_LAYERS)))
                sections.append(Section(f"Time by layer{of_run}", [picture], paragraphs=[_layers_text(run, layers)]))
    missing = [run for run in pruned if not run.latency]
    if missing:
        commands = ", ".join(f"`{_command(run)}`" for run in missing)
        text = f"Not measured yet. On a machine that is free, this measures it and keeps the figures: {commands}."
        sections.append(Section(_HEADING if is_alone or not sections else f"{_HEADING} of others", paragraphs=[text]))
    return sections


def _command(run: RunRecord) -> str:
    return f"resrep benchmark latency {run.workdir}"


def _files_section(run: RunRecord, suffix: str, of_run: str) -> Section:
    points = file_points(run)
    score_name = score_of(run.models["slim"]).name
    pictures = []
    for batch_size in sorted({point.batch_size for point in points}):
        shown = [point for point in points if point.batch_size == batch_size and point.score is not None]
        if shown:
            name = f"report_measured_batch_{batch_size}{suffix}"
            pictures.append(Picture(name, latency_picture(shown, score_name, batch_size)))
    paragraphs = [text for text in (_headline(points), _setting(run, points)) if text]
    return Section(f"{_HEADING}{of_run}", pictures, [_table(points, score_name)], paragraphs)


def _headline(points: Sequence[FilePoint]) -> str:
    """Return what pruning, and eight bits where they were measured, bring against the base in float."""
    texts = []
    for runtime, name in RUNTIMES.items():
        own = [point for point in points if point.runtime == runtime]
        first = {point.variant: point for point in sorted(own, key=lambda point: -point.batch_size)}
        base, best = first.get("base"), first.get("slim, 8 bits") or first.get("slim")
        if base is None or best is None:
            continue
        bits = " in eight bits" if best.variant != "slim" else ""
        size = ""
        if best.size_bytes and base.size_bytes:
            size = f"{best.size_bytes / base.size_bytes:.2f} of the size and "
        texts.append(f"{name}{bits} {size}{_ratio(best, base)} of the time")
    images = min((point.batch_size for point in points), default=1)
    of_batch = "one image" if images == 1 else f"a batch of {images}"
    return f"The slim model against the base in float, {of_batch}: {'; '.join(texts)}." if texts else ""


def _ratio(point: FilePoint, base: FilePoint) -> str:
    """Return the time as a fraction of the base's, with its spread where both are known."""
    ratio = point.milliseconds / base.milliseconds
    if point.spread is None or base.spread is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f}{_SPACE}±{_SPACE}{ratio * math.hypot(point.spread, base.spread):.2f}"


def _setting(run: RunRecord, points: Sequence[FilePoint]) -> str:
    latency = run.latency or {}
    cores = f", {latency['num_cores']} core(s)" if "num_cores" in latency else ""
    date = f", {latency['date'][:10]}" if "date" in latency else ""
    texts = [f"Medians by `{_command(run)}`{cores}{date}."]
    if any(point.spread is not None for point in points):
        texts.append("After ± half of the 95 % confidence interval.")
    bound = latency.get("spread_bound")
    if bound and any((point.spread or 0.0) > 2 * bound for point in points):
        texts.append("Some medians vary much: the machine was not free.")
    if is_of_an_earlier_model(run):
        texts.append("They are of an earlier slim model: the run was merged again since. Measure again.")
    if any(point.variant == "slim, 8 bits" and point.score is None for point in points):
        texts.append(
            f"In eight bits no score is known without `resrep export {run.workdir} --format tflite_int8 --format "
            "onnx_int8` before the measurement."
        )
    return " ".join(texts)


def _layers_text(run: RunRecord, layers: dict[str, Any]) -> str:
    runtime = {**RUNTIMES, "onnx": "ONNX Runtime"}[layers["runtime"]]
    how = "each layer alone, scaled as in the table"
    if layers["is_in_place"]:
        how = "in the model by its profiler, less what that adds to each operation"
    text = (
        f"Where the time of the slim model goes in {runtime}, batch {layers['batch_size']}, {layers['num_threads']} "
        f"thread(s), measured {how}: the layers whose widths were pruned, and everything else."
    )
    if layers.get("predicted_ms") is None or not layers.get("table"):
        return f"{text} `{_command(run)} --costs costs.json` adds what a table of `resrep measure` predicts."
    table = layers["table"]
    error = layers["predicted_ms"] / layers["slim_ms"] - 1
    of_base = (layers["predicted_ms"] / table["base_ms"]) / (layers["slim_ms"] / layers["base_ms"]) - 1
    spread = math.hypot(layers["slim_spread"], layers["base_spread"])
    machine = table["machine"]
    processor = machine.get("gpu") or machine.get("processor", "a processor that it does not name")
    return (
        f"{text} The table, of {table['date'][:10]} on {processor}, predicts {layers['predicted_ms']:.3g} ms for the "
        f"whole; {layers['slim_ms']:.3g} ms were measured (error {100 * error:+.1f} ± "
        f"{100 * layers['slim_spread']:.1f} %; as a fraction of the base's time {100 * of_base:+.1f} ± "
        f"{100 * spread:.1f} %)."
    )


def _table(points: Sequence[FilePoint], score_name: str) -> Table:
    """Return a row for each file, with its times at all batch sizes beside those of the base in the same runtime."""
    times = {(point.runtime, point.variant, point.batch_size): point for point in points}
    sizes = sorted({point.batch_size for point in points})
    rows = []
    for runtime, variant in dict.fromkeys((point.runtime, point.variant) for point in points):
        first = next(point for point in points if (point.runtime, point.variant) == (runtime, variant))
        cells = [
            f"{RUNTIMES[runtime]}, {variant}",
            f"{first.score:.2f} %" if first.score is not None else "?",
            f"{first.size_bytes / 1e6:.2f}{_SPACE}MB" if first.size_bytes else "?",
        ]
        for batch_size in sizes:
            point, base = times.get((runtime, variant, batch_size)), times.get((runtime, "base", batch_size))
            cells += [_milliseconds(point), f"{point.milliseconds / base.milliseconds:.2f}" if point and base else "?"]
        rows.append(tuple(cells))
    headings = [heading for size in sizes for heading in (f"batch of {size}, ms", "of base")]
    return Table(("file", f"validation {score_name}", "size", *headings), rows)


def _milliseconds(point: FilePoint | None) -> str:
    if point is None:
        return "?"
    spread = f"{_SPACE}±{_SPACE}{100 * point.spread:.0f}{_SPACE}%" if point.spread is not None else ""
    return f"{point.milliseconds:.3g}{spread}"
