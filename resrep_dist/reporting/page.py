"""The report of one or several runs: an HTML page that opens without a server, and the same as Markdown."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.config.changed import changed_settings
from resrep_dist.config.tasks import score_of
from resrep_dist.errors import UserError
from resrep_dist.reporting.figures import channels_picture, costs_pictures, curves_pictures, run_color
from resrep_dist.reporting.goals import outcome_of
from resrep_dist.reporting.measured import measured_sections
from resrep_dist.reporting.parts import Picture, Section, Table
from resrep_dist.reporting.run_folder import RunRecord
from resrep_dist.reporting.savings import describe_savings
from resrep_dist.reporting.verdict import is_good, verdict

import jinja2
import markupsafe


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The sentence that the page opens with."""

    text: str
    is_good: bool


@dataclasses.dataclass(frozen=True)
class Page:
    """What both templates are filled with."""

    title: str
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]


def write_pages(runs: Sequence[RunRecord], folder: Path) -> Path:
    """Write `report.html`, `report.md` and the pictures that the latter shows.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: if the folder cannot be written.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    page = Page(title, _verdicts(runs), _sections(runs))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("report.html", "report.md"):
            (folder / name).write_text(render(page, f"{name}.j2"), encoding="utf-8")
        for picture in (picture for section in page.sections for picture in section.pictures):
            (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); use another folder") from None
    return folder / "report.html"


def render(page: Page, template_name: str) -> str:
    """Fill one of the templates in `templates/`; text is escaped in those that end in `.html.j2`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resrep_dist.reporting"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _with_code
    return environment.get_template(template_name).render(page=page)


def _with_code(text: str) -> markupsafe.Markup:
    """Return a paragraph for HTML, in which what stands in backticks is code."""
    return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def _verdicts(runs: Sequence[RunRecord]) -> list[Verdict]:
    verdicts = []
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        if run.report is None:
            verdicts.append(Verdict(f"{name}Not finished: `resrep train` ends with a report.", is_good=False))
            continue
        verdicts += [Verdict(f"{name}Broken: {problem}.", is_good=False) for problem in run.report.get("problems", ())]
        verdicts.append(Verdict(name + verdict(run.report), is_good(run.report)))
    return verdicts


def _sections(runs: Sequence[RunRecord]) -> list[Section]:
    finished = [run for run in runs if run.report]
    sections = []
    if finished:
        table = _models_table(finished[0]) if len(runs) == 1 else _runs_table(runs)
        pictures = [Picture(f"report_{name}", svg) for name, svg in costs_pictures(finished).items()]
        paragraphs = [_goal(run, len(runs) > 1) for run in finished]
        sections.append(Section("Accuracy and cost", pictures, [table], paragraphs))
        sections += measured_sections(finished, is_alone=len(runs) == 1)
    if any(run.curves for run in runs):
        pictures = [Picture(f"report_curve_{name}", svg) for name, svg in curves_pictures(runs).items()]
        sections.append(Section("Curves", pictures))
    for index, run in enumerate(runs):
        if _is_pruned(run) or run.channels.died_at:
            name, heading = ("", "") if len(runs) == 1 else (f"_{index}", f" ({run.name})")
            picture = Picture(f"report_channels{name}", channels_picture(run))
            sections.append(Section(f"Widths and channels{heading}", [picture]))
    pruned = [run for run in finished if _is_pruned(run)]
    if pruned:
        sections.append(Section("Certificate", tables=[_certificate(pruned)]))
    sections.append(_configuration(runs))
    return sections


def _is_pruned(run: RunRecord) -> bool:
    return "slim" in run.models


def _models_table(run: RunRecord) -> Table:
    base = next(iter(run.models.values()))
    rows = [
        (
            name, f"{score_of(model).value:.2f} %", _macs(model, base), f"{model['parameters']:,}", _latency(model),
            _megabytes(model),
        )
        for name, model in run.models.items()
    ]  # fmt: skip
    score_name = f"validation {score_of(base).name}"
    return Table(("model", score_name, "multiply-adds", "parameters", "latency of one image", "file"), rows)


def _runs_table(runs: Sequence[RunRecord]) -> Table:
    """Return one row for each finished run: its result beside its base."""
    rows, colors = [], []
    first = next((model for run in runs for model in run.models.values()), {"top1": 0.0})
    name = score_of(first).name
    for number, run in enumerate(runs):
        if run.report:
            base, result = next(iter(run.models.values())), list(run.models.values())[-1]
            times = f"{_latency(base)} to {_latency(result)}" if base is not result else _latency(base)
            scores = [score_of(model) for model in (base, result)]
            shown = [f"{s.value:.2f} %" if s.name == name else f"{s.name} {s.value:.2f} %" for s in scores]
            shown[0] = shown[0] if base is not result else ""
            target = _target(run.report) if _is_pruned(run) else ""
            rows.append((run.name, run.report["model"], *shown, target, _macs(result, base), times, _megabytes(result)))
            colors.append(run_color(number))
    headings = (
        "run", "model", f"validation {name}, base", f"validation {name}, result", "target", "multiply-adds",
        "latency of one image", "file",
    )  # fmt: skip
    return Table(headings, rows, colors=colors)


def _target(report: dict[str, Any]) -> str:
    noun, asked, _ = outcome_of(report)
    return f"{100 * asked:.1f} %" + (f" {noun}" if noun != "multiply-adds" else "")


def _macs(model: dict[str, Any], base: dict[str, Any]) -> str:
    return f"{model['macs'] / 1e6:,.2f} M ({100 * model['macs'] / base['macs']:.1f} %)" if model["macs"] else "?"


def _latency(model: dict[str, Any]) -> str:
    return f"{model['latency_ms']:.2f} ms" if model.get("latency_ms") else "not measured"


def _megabytes(model: dict[str, Any]) -> str:
    return f"{model['file_bytes'] / 1e6:.2f} MB"


def _goal(run: RunRecord, is_named: bool) -> str:
    report, name = run.report or {}, f"{run.name}: " if is_named else ""
    if not _is_pruned(run):
        return f"{name}{report['model']}, trained without pruning."
    noun, target, reached = outcome_of(report)
    num_alive = report["num_masked_alive"]
    end = "missed" if report["target_missed"] else "met"
    end += f", {num_alive:,} masked channels are still alive" if report["target_missed"] and num_alive else ""
    figures = f"target {100 * target:.1f} % of the {noun}, {100 * reached:.1f} % left"
    cost = f" {describe_savings(report['training'])}" if "training" in report else ""
    return f"{name}{report['model']}, {figures}: {end}.{cost}"


def _certificate(runs: Sequence[RunRecord]) -> Table:
    """Return one column for each run."""
    names = (
        "images compared", "largest difference of two logits", "the same, as a fraction of the largest logit",
        "tolerance for that", "images with the same class", "the slim file in Keras 3, as such a fraction",
    )  # fmt: skip
    columns = []
    for run in runs:
        certificate = (run.report or {})["certificate"]
        keras3 = "not compared"
        if certificate.get("keras3_version") is not None:
            keras3 = f"{certificate['keras3_max_relative_difference']:.2g} (Keras {certificate['keras3_version']})"
        columns.append(
            (str(certificate["num_images"]), f"{certificate['max_abs_difference']:.2g}",
             f"{certificate['max_relative_difference']:.2g}", f"{run.config.merge.tolerance:.2g}",
             f"{100 * certificate['argmax_agreement']:.1f} %", keras3)
        )  # fmt: skip
    headings = ("trained and slim model on the same images", *(run.name for run in runs))
    return Table(headings, list(zip(names, *columns, strict=True)))


def _configuration(runs: Sequence[RunRecord]) -> Section:
    """Return what differs from the defaults, first what differs between the runs."""
    changed = [changed_settings(run.config) for run in runs]
    different, common = [], []
    for name in dict.fromkeys(name for settings in changed for name in settings):
        default = next(settings[name][0] for settings in changed if name in settings)
        values = [_shown(settings[name][1] if name in settings else default) for settings in changed]
        if len(set(values)) > 1:
            different.append((name, *values))
        else:
            common.append((name, values[0], _shown(default)))
    tables = []
    if different:
        tables.append(Table(("setting", *(run.name for run in runs)), different, "What differs between the runs:"))
    caption = "What differs from the defaults" + (", in all runs alike:" if len(runs) > 1 else ":")
    tables.append(Table(("setting", "value", "default"), common, caption))
    return Section("Configuration", tables=tables, paragraphs=["All settings are in config.yaml of the run."])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return "none" if value is None else str(value)
