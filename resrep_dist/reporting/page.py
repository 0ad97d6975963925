"""The report of one or several runs: an HTML page that opens without a server, and the same as Markdown."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from resrep_dist.errors import UserError
from resrep_dist.reporting.figures import channels_picture, costs_picture, curves_picture, widths_picture
from resrep_dist.reporting.run_folder import RunRecord

import jinja2


@dataclasses.dataclass(frozen=True)
class Picture:
    """An SVG and the name of its file beside the Markdown page."""

    name: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Headings, rows of as many cells, and a line of text above them."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; what is empty is left out."""

    heading: str
    picture: Picture | None = None
    table: Table | None = None
    paragraphs: Sequence[str] = ()
    yaml: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """What both templates are filled with."""

    title: str
    sections: Sequence[Section]


def write_pages(runs: Sequence[RunRecord], folder: Path) -> Path:
    """Write `report.html`, `report.md` and the pictures that the latter shows.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: if the folder cannot be written.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    page = Page(title, _sections(runs))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("report.html", "report.md"):
            (folder / name).write_text(render(page, f"{name}.j2"), encoding="utf-8")
        for picture in (section.picture for section in page.sections if section.picture):
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
    return environment.get_template(template_name).render(page=page)


def _sections(runs: Sequence[RunRecord]) -> list[Section]:
    finished = [run for run in runs if run.report]
    sections = [_result(runs, finished)]
    if finished:
        picture = Picture("report_costs", costs_picture(finished))
        sections.append(Section("Accuracy and cost", picture, _latency_table(runs)))
    if any(run.curves for run in runs):
        sections.append(Section("Curves", Picture("report_curves", curves_picture(runs))))
    for make_section in (_widths, _channels, _certificate, _configuration):
        for index, run in enumerate(runs):
            suffix = f"_{index}" if len(runs) > 1 else ""
            section = make_section(run, suffix)
            if section is not None:
                heading = f"{section.heading} ({run.name})" if len(runs) > 1 else section.heading
                sections.append(dataclasses.replace(section, heading=heading))
    return sections


def _result(runs: Sequence[RunRecord], finished: Sequence[RunRecord]) -> Section:
    paragraphs = [_verdict(run) for run in finished]
    paragraphs += [f"{run.name} is broken: {problem}." for run in finished for problem in _problems(run)]
    paragraphs += [f"{run.name} is not finished: `resrep train` ends with a report." for run in runs if not run.report]
    return Section("Result", table=_result_table(finished) if finished else None, paragraphs=paragraphs)


def _widths(run: RunRecord, suffix: str) -> Section | None:
    if not _is_pruned(run):
        return None
    return Section("Widths", Picture(f"report_widths{suffix}", widths_picture(run)))


def _channels(run: RunRecord, suffix: str) -> Section | None:
    if not run.channels.died_at:
        return None
    picture = Picture(f"report_channels{suffix}", channels_picture(run))
    return Section("Channels: which live, and when the others died", picture)


def _configuration(run: RunRecord, suffix: str) -> Section:
    return Section("Configuration", yaml=run.config.to_yaml())


def _is_pruned(run: RunRecord) -> bool:
    return "slim" in run.models


def _result_table(runs: Sequence[RunRecord]) -> Table:
    rows = []
    for run in runs:
        base = next(iter(run.models.values()))
        for name, model in run.models.items():
            share = (
                f"{model['macs'] / 1e6:,.2f} M ({100 * model['macs'] / base['macs']:.1f} %)" if model["macs"] else "?"
            )
            figures = (f"{model['top1']:.2f} %", share, f"{model['parameters']:,}", f"{model['latency_ms']:.2f} ms")
            rows.append((f"{run.name}: {name}", *figures, f"{model['file_bytes'] / 1e6:.2f} MB"))
    return Table(("model", "top-1", "multiply-adds", "parameters", "latency of one image", "file"), rows)


def _verdict(run: RunRecord) -> str:
    report = run.report or {}
    if not _is_pruned(run):
        return f"{run.name}: {report['model']}, trained without pruning."
    reached, target = report["slim"]["macs"] / report["base"]["macs"], report["target_macs_fraction"]
    end = f"missed, {report['num_masked_alive']} masked channels are still alive" if report["target_missed"] else "met"
    return (
        f"{run.name}: {report['model']}, target {100 * target:.1f} % of the multiply-adds, "
        f"{100 * reached:.1f} % left: {end}."
    )


def _problems(run: RunRecord) -> list[str]:
    return (run.report or {}).get("problems", [])


def _latency_table(runs: Sequence[RunRecord]) -> Table | None:
    rows = [
        (f"{run.name}: {row['format']}", str(row["batch_size"]), f"{row['base_ms']:.2f}", f"{row['slim_ms']:.2f}",
         f"{row['speedup']:.2f}")
        for run in runs if run.latency for row in run.latency["rows"]
    ]  # fmt: skip
    headings = ("format", "batch", "base, ms", "slim, ms", "times faster")
    return Table(headings, rows, "Measured by `resrep benchmark latency`, medians:") if rows else None


def _certificate(run: RunRecord, suffix: str) -> Section | None:
    if not _is_pruned(run):
        return None
    certificate = (run.report or {})["certificate"]
    rows = [
        ("images compared", str(certificate["num_images"])),
        ("largest difference of two logits", f"{certificate['max_abs_difference']:.2g}"),
        ("the same, as a fraction of the largest logit", f"{certificate['max_relative_difference']:.2g}"),
        ("tolerance for that", f"{run.config.merge.tolerance:.2g}"),
        ("images with the same class", f"{100 * certificate['argmax_agreement']:.1f} %"),
    ]
    if certificate.get("keras3_version") is not None:
        difference = f"{certificate['keras3_max_relative_difference']:.2g}"
        rows.append((f"the slim file in Keras {certificate['keras3_version']}, as such a fraction", difference))
    return Section("Certificate", table=Table(("trained and slim model on the same images", ""), rows))
