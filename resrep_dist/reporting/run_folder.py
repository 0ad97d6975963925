"""What a run's folder tells about the run: configuration, curves, channels, report. Reads files only."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config
from resrep_dist.errors import UserError
from resrep_dist.monitoring.channel_history import ChannelHistory
from resrep_dist.reporting.table import read_report

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

Curve = list[tuple[int, float]]
_CURVES = ("train/", "validation/", "prune/", "time/")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run, finished or not."""

    workdir: Path
    name: str
    """What the run is called beside others."""
    config: Config
    report: dict[str, Any] | None
    """`report.json` of `slim/` or `final/`; none before the end."""
    curves: dict[str, Curve]
    """(step, value) in the order of steps, by tag; without those of the base phase."""
    channels: ChannelHistory
    latency: dict[str, Any] | None
    """The section `latency` of the folder's `benchmark.json`, where `resrep benchmark latency DIR` was run."""

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The measured figures of the report, by model: base, trained and slim, or final."""
        names = ("base", "trained", "slim", "final")
        return {name: self.report[name] for name in names if name in self.report} if self.report else {}


def read_runs(workdirs: Sequence[Path]) -> list[RunRecord]:
    """Read the folders of runs; each is called by the end of its path, as much of it as tells them apart.

    Raises:
        UserError: for a folder that is none, or a file in it that cannot be read.
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
    is_finished = any((workdir / part / "report.json").exists() for part in ("final", "slim"))
    benchmark = workdir / "benchmark.json"
    return RunRecord(
        workdir=workdir,
        name=name,
        config=load_config(workdir / "config.yaml"),
        report=read_report(workdir) if is_finished else None,
        curves=read_curves(workdir / "tensorboard"),
        channels=ChannelHistory.load(workdir / "tensorboard"),
        latency=_read_json(benchmark).get("latency") if benchmark.exists() else None,
    )


def read_curves(folder: Path) -> dict[str, Curve]:
    """The scalars in the event files of a folder, one point per step."""
    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
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
