"""Reads the report of a run, and prints it as a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.config.tasks import score_of
from resrep_dist.errors import UserError
from resrep_dist.models.result_folder import current_folder
from resrep_dist.reporting.goals import outcome_of
from resrep_dist.reporting.savings import describe_savings

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def find_report(workdir: Path) -> Path | None:
    """Return the path of a run's `report.json`; None before the end of the run.

    Args:
        workdir: Folder of the run.
    """
    paths = [current_folder(workdir / name) / "report.json" for name in ("final", "slim")]
    return next((path for path in paths if path.exists()), None)


def read_report(workdir: Path) -> dict[str, Any]:
    """Return the report of a finished run.

    Args:
        workdir: Folder of the run.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    path = find_report(workdir) or workdir / "slim" / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); `resrep merge {workdir}` writes it") from None


def print_report(console: Console, report: dict[str, Any], workdir: Path) -> None:
    """Print the table at the end of a run, its certificate, its problems and its files.

    Args:
        console: Where it is printed.
        report: Report of the run.
        workdir: Folder of the run.
    """
    is_pruned = "slim" in report
    goal = "trained without pruning"
    if is_pruned:
        noun, asked, _ = outcome_of(report)
        goal = f"target {100 * asked:.1f} % {noun}"
    names = ("base", "trained", "slim") if is_pruned else ("final",)
    rows = [(name, report[name], report[names[0]]) for name in names]
    console.print(_table(f"{report['model']}, {goal}", rows))
    if is_pruned:
        _print_certificate(console, report)
    if "training" in report:
        console.print(describe_savings(report["training"]))
    if "made_from" in report:
        early = "" if report.get("is_end_of_training", True) is not False else ", which is not the end of the training"
        name = f"{report['checkpoint']} " if report.get("checkpoint") in ("best", "newest") else ""
        console.print(f"Made from the {name}checkpoint, step {report['made_from']['step']}{early}.")
    for problem in report.get("problems", []):
        console.print(f"[bold]Broken:[/bold] {problem}.")
    folder = workdir / names[-1]
    console.print(f"Files: {folder}/model.h5 (plain Keras), {folder}/report.json, {workdir}/tensorboard", markup=False)


def print_comparison(console: Console, reports: Mapping[str, dict[str, Any]]) -> None:
    """Print the results of several runs, one line each.

    Args:
        console: Where they are printed.
        reports: Reports by the names of the runs.
    """
    rows = []
    for name, report in reports.items():
        is_pruned = "slim" in report
        missed = ", target missed" if report.get("target_missed") else ""
        row, base = (report["slim"], report["base"]) if is_pruned else (report["final"], report["final"])
        rows.append((f"{name}{missed}", row, base))
    console.print(_table("multiply-adds are relative to the run's own base", rows))


def _table(title: str, rows: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]) -> Table:
    """Return a table with one row per name, from its figures and those of its base model."""
    table = Table(title=title)
    score_name = score_of(rows[0][1]).name
    for heading in ("model", score_name, "multiply-adds", "parameters", "latency", "file"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, row, base in rows:
        table.add_row(
            escape(name),
            _score(row, score_name),
            f"{row['macs'] / 1e6:.2f} M ({100 * row['macs'] / base['macs']:.1f} %)" if row["macs"] else "not known",
            f"{row['parameters']:,}",
            f"{row['latency_ms']:.2f} ms",
            f"{row['file_bytes'] / 1e6:.2f} MB",
        )
    return table


def _score(row: dict[str, Any], expected_name: str) -> str:
    """Return a model's score; with its name if it is another one than the heading says."""
    score = score_of(row)
    return f"{score.value:.2f} %" if score.name == expected_name else f"{score.name} {score.value:.2f} %"


def _print_certificate(console: Console, report: dict[str, Any]) -> None:
    certificate = report["certificate"]
    console.print(
        f"Largest difference of trained and slim logits: {certificate['max_abs_difference']:.2g}, "
        f"{certificate['max_relative_difference']:.2g} of the largest, on {certificate['num_images']} images; "
        f"the same class for {100 * certificate['argmax_agreement']:.1f} %."
    )
    if certificate.get("keras3_version") is not None:
        console.print(
            f"The slim file in Keras {certificate['keras3_version']}: largest difference from the trained model "
            f"{certificate['keras3_max_relative_difference']:.2g} of the largest output."
        )
    noun, asked, left = outcome_of(report)
    if report["target_missed"]:
        console.print(
            f"[bold]Target missed:[/bold] {100 * left:.1f} % of the "
            f"{noun} are left, {100 * asked:.1f} % were asked for; "
            f"{report['num_masked_alive']} masked channels are still alive."
        )
    elif noun == "latency":
        target = report["target"]
        console.print(
            f"Latency by the table of times: {target['left']:.3g} of {target['base']:.3g} ms; `resrep benchmark "
            "latency` measures the models."
        )
