"""The report of one run or several: an HTML page that opens without a server, and the same as Markdown."""

import dataclasses
import html
from collections.abc import Callable, Sequence
from pathlib import Path

from resrep_dist.errors import UserError
from resrep_dist.reporting.figures import channels_picture, costs_picture, curves_picture, widths_picture
from resrep_dist.reporting.run_folder import RunRecord

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #dde2e8; }
table { border-collapse: collapse; } td, th { padding: .3em .9em; border-bottom: 1px solid #e8ecf0; text-align: right; }
td:first-child, th:first-child { text-align: left; } th { color: #5a6773; font-weight: 600; }
svg { width: 100%; height: auto; } pre { background: #f5f7f9; padding: 1em; overflow: auto; font-size: 13px; }
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """An SVG and the name of its file beside the Markdown."""

    name: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Code:
    """Text as it is."""

    text: str


Block = str | Table | Picture | Code


def write_pages(runs: Sequence[RunRecord], folder: Path) -> Path:
    """Write `report.html`, `report.md` and the pictures of the latter; returns the HTML file.

    Raises:
        UserError: when the folder cannot be written.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    sections = _sections(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(as_html(title, sections), encoding="utf-8")
        (folder / "report.md").write_text(as_markdown(title, sections), encoding="utf-8")
        for picture in (block for _, blocks in sections for block in blocks if isinstance(block, Picture)):
            (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); use another folder") from None
    return folder / "report.html"


def as_html(title: str, sections: list[tuple[str, list[Block]]]) -> str:
    """One page with everything in it; it asks for nothing else."""
    parts = [f"<h2>{html.escape(heading)}</h2>\n" + "\n".join(map(_block_html, blocks)) for heading, blocks in sections]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def as_markdown(title: str, sections: list[tuple[str, list[Block]]]) -> str:
    """The same; its pictures are files beside it."""
    parts = [f"## {heading}\n\n" + "\n\n".join(map(_block_markdown, blocks)) for heading, blocks in sections]
    return f"# {title}\n\n" + "\n\n".join(parts) + "\n"


def _sections(runs: Sequence[RunRecord]) -> list[tuple[str, list[Block]]]:
    finished = [run for run in runs if run.report]
    results: list[Block] = [_result_table(finished), *map(_verdict, finished)] if finished else []
    results += [f"{run.name} is broken: {problem}." for run in finished for problem in _problems(run)]
    results += [f"{run.name} is not finished: `resrep train` ends with a report." for run in runs if not run.report]
    sections: list[tuple[str, list[Block]]] = [("Result", results)]
    if finished:
        sections += [("Accuracy and cost", [Picture("report_costs", costs_picture(finished)), *_latencies(runs)])]
    if any(run.curves for run in runs):
        sections += [("Curves", [Picture("report_curves", curves_picture(runs))])]
    each: tuple[tuple[str, Callable[[RunRecord], bool], Callable[[RunRecord, str], Block]], ...] = (
        ("Widths", _is_pruned, lambda run, end: Picture(f"report_widths{end}", widths_picture(run))),
        (
            "Channels: which live, and when the others died",
            lambda run: bool(run.channels.died_at),
            lambda run, end: Picture(f"report_channels{end}", channels_picture(run)),
        ),
        ("Certificate", _is_pruned, lambda run, _: _certificate(run)),
        ("Configuration", lambda _: True, lambda run, _: Code(run.config.to_yaml())),
    )
    for heading, has_it, block in each:
        for number, run in enumerate(runs):
            if has_it(run):
                name, end = (f"{heading} ({run.name})", f"_{number}") if len(runs) > 1 else (heading, "")
                sections.append((name, [block(run, end)]))
    return sections


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


def _latencies(runs: Sequence[RunRecord]) -> list[Block]:
    rows = [
        (f"{run.name}: {row['format']}", str(row["batch_size"]), f"{row['base_ms']:.2f}", f"{row['slim_ms']:.2f}",
         f"{row['speedup']:.2f}")
        for run in runs if run.latency for row in run.latency["rows"]
    ]  # fmt: skip
    headings = ("format", "batch", "base, ms", "slim, ms", "times faster")
    return ["Measured by `resrep benchmark latency`, medians:", Table(headings, rows)] if rows else []


def _certificate(run: RunRecord) -> Table:
    certificate = (run.report or {})["certificate"]
    rows = [
        ("images compared", str(certificate["num_images"])),
        ("largest difference of two logits", f"{certificate['max_abs_difference']:.2g}"),
        ("the same, as a fraction of the largest logit", f"{certificate['max_relative_difference']:.2g}"),
        ("tolerance for that", f"{run.config.merge.tolerance:.2g}"),
        ("images with the same class", f"{100 * certificate['argmax_agreement']:.1f} %"),
    ]
    return Table(("trained and slim model on the same images", ""), rows)


def _block_html(block: Block) -> str:
    if isinstance(block, Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.headings)
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in block.rows]
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    if isinstance(block, Picture):
        return f"<figure>{block.svg}</figure>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    return f"<p>{html.escape(block)}</p>"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Table):
        lines = [block.headings, ("---", *["---:"] * (len(block.headings) - 1)), *block.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(block, Picture):
        return f"![{block.name}]({block.name}.svg)"
    if isinstance(block, Code):
        return f"```yaml\n{block.text}```"
    return block
