"""Writes `peers.md` from the results of `python -m tests.quality.peers`."""

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
    """Write the table of all results, one row for the seeds of a method."""
    rows = list(found["results"].values())
    milliseconds = latencies([row["onnx"] for row in rows])
    versions = sorted({row["versions"] for row in rows if "versions" in row})
    lines = [
        "# Against Torch-Pruning",
        "",
        "Written by `python -m tests.quality.peers`, see there for how the methods are made comparable. "
        f"{'; '.join(versions)}.",
        "",
        "- Top-1 on the validation images, percent; the seeds in their order.",
        "- Multiply-adds of the result, and of all steps of the run relative to plain training of the base; medians.",
        f"- ONNX: milliseconds for {BATCH_SIZE} images, the median over {NUM_ROUNDS} rounds in which all files take "
        "turns; then over the seeds.",
        "- Alive: masked rows that were not dead at the end and were deleted all the same, median.",
        "",
    ]
    if found["overrides"]:
        lines += [f"With other settings than usual: {' '.join(found['overrides'])}.", ""]
    header = "| model | target | method | top-1 | median | multiply-adds | of the run | ONNX, ms | alive |"
    lines += [header, "|---|---|---|---|---|---|---|---|---|"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        target = None if row["method"] == "base" else row["target"]
        groups.setdefault((row["data"], row["model"], target, row["method"]), []).append(row)
    order = list(NAMES)
    for key in sorted(groups, key=lambda key: (key[0], key[1], -(key[2] or 1.0), order.index(key[3]))):
        lines.append(_row(key, sorted(groups[key], key=lambda row: row["seed"]), milliseconds))
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(key: tuple[Any, ...], rows: list[dict[str, Any]], milliseconds: dict[str, float]) -> str:
    data, model, target, method = key

    def median(name: str, form: str) -> str:
        values = [row[name] for row in rows if name in row]
        return format(statistics.median(values), form) if values else ""

    cells = [
        f"{model}, {data}",
        f"{target:g}" if target else "",
        NAMES[method],
        " ".join(f"{row['top1']:.2f}" for row in rows),
        median("top1", ".2f"),
        median("macs_fraction", ".3f"),
        median("macs_vs_plain", ".2f"),
        f"{statistics.median(milliseconds[row['onnx']] for row in rows):.2f}",
        median("num_masked_alive", ".0f"),
    ]
    return f"| {' | '.join(cells)} |"
