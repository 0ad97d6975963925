"""Writes `peers.md` and `peers.json` from the results of `python -m tests.quality.peers`."""

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

from resrep_dist.export.inference import open_model_file

import numpy as np

BATCH_SIZE, NUM_WARM_ROUNDS, NUM_ROUNDS = 32, 5, 30
NAMES = {
    "base": "base, not pruned",
    "magnitude": "Torch-Pruning, magnitude",
    "batch_norm_scale": "Torch-Pruning, batch-norm scale",
    "taylor": "Torch-Pruning, Taylor",
    "taylor, multiples of 4": "Torch-Pruning, Taylor, multiples of 4",
    "fpgm": "Torch-Pruning, FPGM",
    "paper": "the paper's rule, `off`",
    "off, one penalty": "ours, `off`, one penalty for all rows",
    "exact, one penalty": "ours, `exact`, one penalty for all rows",
    "exact": "ours, `exact`",
    "merge, one penalty": "ours, `merge`, one penalty for all rows",
    "merge": "ours, `merge`",
    "merge, taught": "ours, `merge`, distillation",
    "merge, residual groups": "ours, `merge`, residual groups",
    "merge, norm per cost": "ours, `merge`, ranking by norm per cost",
    "merge, multiples of 4": "ours, `merge`, multiples of 4",
    "merge, averaged": "ours, `merge`, average of weights",
    "merge, mixup": "ours, `merge`, mixup",
    "merge, CutMix": "ours, `merge`, CutMix",
    "merge, RandAugment": "ours, `merge`, RandAugment",
}


def latencies(paths: list[str]) -> dict[str, float]:
    """The median milliseconds of a batch of each file; all files in turn in each round."""
    programs = {path: open_model_file(Path(path)) for path in paths}
    times: dict[str, list[float]] = {path: [] for path in paths}
    for number in range(NUM_WARM_ROUNDS + NUM_ROUNDS):
        for path, program in programs.items():
            images = np.random.default_rng(0).normal(size=(BATCH_SIZE, *program.input_shape)).astype(np.float32)
            start = time.perf_counter()
            program.run(images)
            if number >= NUM_WARM_ROUNDS:
                times[path].append(1000 * (time.perf_counter() - start))
    return {path: statistics.median(of_path) for path, of_path in times.items()}


def write_report(found: dict[str, Any], output: Path) -> None:
    """Write the table of these results and of those of other days, which stand beside it as JSON.

    A trial, whose settings are others than usual, is not mixed with what stands there.
    """
    rows, file = with_latencies(list(found["results"].values())), output.with_suffix(".json")
    if file.exists() and not found["overrides"]:
        known = {_identity(row): row for row in [*json.loads(file.read_text()), *rows]}
        rows = list(known.values())
    rows.sort(key=_identity)
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    versions = sorted({row["versions"] for row in rows if "versions" in row})
    lines = [
        "# Against Torch-Pruning",
        "",
        "Written by `python -m tests.quality.peers`, see there for how the methods are made comparable. "
        f"{'; '.join(versions)}.",
        "",
        "- Top-1 on the validation images, percent; the seeds in their order.",
        "- Multiply-adds of the result, and of all steps of the run relative to plain training of the base; medians.",
        f"- ONNX: the time for {BATCH_SIZE} images relative to the base of the same seed, the median over {NUM_ROUNDS} "
        "rounds in which all files take turns; then over the seeds.",
        "- Alive: masked rows that were not dead at the end and were deleted all the same, median.",
        "",
    ]
    if found["overrides"]:
        lines += [f"With other settings than usual: {' '.join(found['overrides'])}.", ""]
    header = "| model | target | method | top-1 | median | multiply-adds | of the run | ONNX | alive |"
    lines += [header, "|---|---|---|---|---|---|---|---|---|"]
    for _, of_method in itertools.groupby(rows, lambda row: _identity(row)[:-1]):
        lines.append(_line(list(of_method)))
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def with_latencies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the time of their ONNX file relative to that of their base, in place of the file."""
    milliseconds = latencies([row["onnx"] for row in rows])
    bases = {(row["data"], row["model"], row["seed"]): row["onnx"] for row in rows if row["method"] == "base"}
    measured = []
    for row in rows:
        base = bases[row["data"], row["model"], row["seed"]]
        figures = {name: value for name, value in row.items() if name not in ("onnx", "seconds")}
        if row["method"] == "base":
            figures["target"] = None
        measured.append(figures | {"latency_fraction": milliseconds[row["onnx"]] / milliseconds[base]})
    return measured


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the table; the seeds of a method follow one another."""
    return row["data"], row["model"], -(row["target"] or 1.0), list(NAMES).index(row["method"]), row["seed"]


def _line(rows: list[dict[str, Any]]) -> str:
    """The line of a method: the seeds of one model, data set and target."""

    def median(name: str, form: str) -> str:
        values = [row[name] for row in rows if name in row]
        return format(statistics.median(values), form) if values else ""

    first = rows[0]
    cells = [
        f"{first['model']}, {first['data']}",
        f"{first['target']:g}" if first["target"] else "",
        NAMES[first["method"]],
        " ".join(f"{row['top1']:.2f}" for row in rows),
        median("top1", ".2f"),
        median("macs_fraction", ".3f"),
        median("macs_vs_plain", ".2f"),
        median("latency_fraction", ".2f"),
        median("num_masked_alive", ".0f"),
    ]
    return f"| {' | '.join(cells)} |"
