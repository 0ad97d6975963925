"""What TensorBoard shows beside the curves: the page of custom scalars, the settings of a sweep, texts."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from resrep_dist.config import Config

import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.summary import pb as layout_summary
from tensorboard.plugins.hparams import api as hparams

# For each category its charts, and for each chart the tags in it, as regular expressions.
_LAYOUT: dict[str, dict[str, list[str]]] = {
    "Is it pruning well?": {
        "top-1 and top-5, percent": ["train/top1", "validation/top1", "validation/top5"],
        "multiply-adds left, by mask, by living channels, and in training if it shrinks": [
            "prune/macs_fraction_by_mask", "prune/macs_fraction_living", "shrink/training_macs_fraction",
        ],
        "loss and lasso term": ["train/loss", "train/lasso_term"],
        "width of every group of layers": ["width/.*"],
    },
    "Is it training well?": {
        "learning rate": ["train/learning_rate"],
        "skipped steps": ["train/skipped_steps"],
    },
    "Is it fast?": {
        "images per second, all ranks": ["train/images_per_second"],
        "seconds of a step: all, data, compute, collective": [
            "time/step_seconds", "time/data_seconds", "time/compute_seconds", "time/collective_seconds",
        ],
        "seconds that training stands still": [
            "time/checkpoint_seconds", "time/evaluation_seconds", "time/shrink_seconds",
        ],
        "seconds of writing a checkpoint, beside the training": ["time/checkpoint_write_seconds"],
    },
}  # fmt: skip
_SWEPT_SECTIONS = ("train", "training", "prune", "shrink")
_SWEPT_SETTINGS = ("model.name", "model.image_size", "data.global_batch_size", "data.augmentation", "seed")
_RESULTS = ("validation/top1", "prune/macs_fraction_living", "train/images_per_second")
_PACKAGES = ("resrep-dist", "tensorflow", "tensorflow-cpu", "tf-keras", "horovod", "kerassurgeon", "numpy")


def write_head(config: Config, row: str | None, cluster: str, is_resumed: bool = False) -> None:
    """Write what TensorBoard shows beside the curves of a phase. Called under a summary writer, at each start.

    Args:
        config: The configuration of the run.
        row: Name of the run in the table of a sweep; None for base training, which has no row.
        cluster: `Cluster.description`: the number of ranks and the build of Horovod.
        is_resumed: True to write only the texts. Versions and ranks can be others than at the first start; the rest is
            already written.
    """
    write_texts(config, cluster)
    if not is_resumed:
        write_layout()
        if row is not None:
            write_hparams(config, row)


def write_layout() -> None:
    """Write the tab `Custom scalars`, whose charts show whether pruning works."""
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(
                    title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags])
                )
                for name, tags in charts.items()
            ],
        )
        for title, charts in _LAYOUT.items()
    ]
    _write(layout_summary(layout_pb2.Layout(category=categories)))


def write_hparams(config: Config, run: str) -> None:
    """Write the tab `HParams`: the settings of this run, and the results that a sweep compares, one row per run.

    Args:
        config: The configuration of the run.
        run: Name of the row.
    """
    settings = _settings(config)
    metrics = [hparams.Metric(tag, display_name=tag) for tag in _RESULTS]
    _write(hparams.hparams_config_pb([hparams.HParam(name) for name in settings], metrics))
    _write(hparams.hparams_pb(settings, trial_id=run))


def write_texts(config: Config, cluster: str) -> None:
    """Write the tab `Text`: the complete configuration, and the software versions.

    Args:
        config: The configuration of the run.
        cluster: `Cluster.description`.
    """
    lines = [f"| {name} | {value} |" for name, value in software(cluster).items()]
    tf.summary.text("software", "\n".join(["| what | version |", "|---|---|", *lines]))
    tf.summary.text("config", f"```yaml\n{config.to_yaml()}\n```")


def software(cluster: str) -> dict[str, str]:
    """Return the versions of the packages that influence results, Horovod's build, and this package's commit.

    Args:
        cluster: `Cluster.description`.
    """
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    # A container image has no `.git`; its build sets the variable.
    commit = git_commit() or os.environ.get("RESREP_COMMIT") or "not a git checkout"
    return {**versions, "ranks": cluster, "git commit": commit}


def git_commit(folder: Path = Path(__file__).parents[2]) -> str | None:
    """Return the commit that is checked out where this package is, read from `.git` without the git program.

    Args:
        folder: The folder that has `.git`.

    Returns:
        The hash; None if the folder is not a git checkout.
    """
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        if (git / name).exists():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next(line.split()[0] for line in packed if line.endswith(f" {name}"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return None


def _settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for section, values in config.to_dict().items():
        if not isinstance(values, dict):
            values, section = {section: values}, ""
        for name, value in values.items():
            key = f"{section}.{name}".lstrip(".")
            if section in _SWEPT_SECTIONS or key in _SWEPT_SETTINGS:
                is_plain = isinstance(value, bool | int | float | str)
                settings[key] = value if is_plain else "none" if value is None else str(value)
    return settings


def _write(summary: Any) -> None:
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)
