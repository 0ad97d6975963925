"""Reads the folder of a run: configuration, curves, channels, report. Writes nothing."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config
from resrep_dist.errors import UserError
from resrep_dist.monitoring.channel_history import ChannelHistory
from resrep_dist.reporting.table import find_report, read_report

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

Curve = list[tuple[int, float]]
"""Step and value of each point, by ascending step."""
_CURVES = ("train/", "validation/", "prune/", "shrink/", "time/")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run, finished or not."""

    workdir: Path
    """The folder of the run."""
    name: str
    """Short name, which differs from those of the other runs."""
    config: Config
    """The configuration of the run."""
    report: dict[str, Any] | None
    """`report.json` of `slim/` or `final/`; None before the end."""
    curves: dict[str, Curve]
    """Curves by tag, without those of base training."""
    channels: ChannelHistory
    """When channels were masked and died; empty for a run without pruning."""
    latency: dict[str, Any] | None
    """Section `latency` of `benchmark.json`; None before `resrep benchmark latency DIR`."""

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Measured figures of the report by model: base, trained and slim, or final; empty before the end."""
        names = ("base", "trained", "slim", "final")
        return {name: self.report[name] for name in names if name in self.report} if self.report else {}


def read_runs(workdirs: Sequence[Path]) -> list[RunRecord]:
    """Read the folders of runs. The name of each is the end of its path, long enough to differ from the others.

    Args:
        workdirs: The folders.

    Raises:
        UserError: If a folder is not that of a run, or a file in it cannot be read.
    """
    all_paths = [workdir.resolve().parts for workdir in workdirs]
    name_length = 1
    while len({path[-name_length:] for path in all_paths}) < len(set(all_paths)):
        name_length += 1
    names = ["/".join(path[-name_length:]) for path in all_paths]
    return [_read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]


def _read_run(workdir: Path, name: str) -> RunRecord:
    if not (workdir / "config.yaml").exists():
        raise UserError(f"{workdir}: not a run (no config.yaml); give the --workdir of `resrep train`")
    benchmark = workdir / "benchmark.json"
    return RunRecord(
        workdir=workdir,
        name=name,
        config=load_config(workdir / "config.yaml"),
        report=read_report(workdir) if find_report(workdir) else None,
        curves=read_curves(workdir / "tensorboard"),
        channels=ChannelHistory.load(workdir / "tensorboard"),
        latency=_read_json(benchmark).get("latency") if benchmark.exists() else None,
    )


def read_curves(folder: Path) -> dict[str, Curve]:
    """Return the scalars in the event files of a folder and its subfolders, one point per step.

    Args:
        folder: Folder of the event files.

    Returns:
        Curves by tag.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith(_CURVES):
                    points.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))
    return {tag: sorted(curve.items()) for tag, curve in points.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and create it again") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a JSON object; delete it and create it again")
    return document
