"""What TensorBoard shows beside the curves: the page of custom scalars, the settings of a sweep, texts."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from resrep_dist.config import Config
from resrep_dist.config.changed import changed_settings
from resrep_dist.config.tasks import TASKS

import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.summary import pb as layout_summary
from tensorboard.plugins.hparams import api as hparams

# For each category its charts, and for each chart the tags in it, as regular expressions.
_LAYOUT: dict[str, dict[str, list[str]]] = {
    "Is it pruning well?": {
        "top-1, percent: validation, and training as it goes": ["train/top1", "validation/top1"],
        "top-5 on the validation images, percent": ["validation/top5"],
        "score of another task than classification, percent": [
            "train/(label|pixel)_accuracy", "validation/(mean_average_precision|f1|mean_iou|pixel_accuracy)",
        ],
        "multiply-adds left, by mask, by living channels, and in training if it shrinks": [
            "prune/macs_fraction_by_mask", "prune/macs_fraction_living", "shrink/training_macs_fraction",
        ],
        "parameters or latency left, if the target counts them": [
            "prune/(parameters|latency)_fraction_by_mask", "prune/(parameters|latency)_fraction_living",
        ],
        "loss and lasso term": ["train/loss", "train/lasso_term"],
    },
    "Is it training well?": {
        "learning rate": ["train/learning_rate"],
        "skipped steps": ["train/skipped_steps"],
    },
    "Is it fast?": {
        "images per second, all ranks": ["train/images_per_second"],
        "seconds of a step": ["time/step_seconds"],
        "of these, waiting for data": ["time/data_seconds"],
        "of these, computing": ["time/compute_seconds"],
        "of these, the collective": ["time/collective_seconds"],
        "seconds that training stands still for a checkpoint": ["time/checkpoint_seconds"],
        "for an evaluation": ["time/evaluation_seconds"],
        "for a shrink": ["time/shrink_seconds"],
        "seconds of writing a checkpoint, beside the training": ["time/checkpoint_write_seconds"],
    },
}  # fmt: skip
# What a sweep mostly varies, in the order of the columns; other settings are there if they differ from the default.
_SWEPT_SETTINGS = (
    "prune.target_macs_fraction", "prune.lasso_strength", "train.learning_rate", "train.num_epochs",
    "data.global_batch_size", "model.name", "seed",
)  # fmt: skip
_SUBRUNS = {
    "prune/macs_fraction_by_mask": "by_mask",
    "prune/parameters_fraction_by_mask": "by_mask",
    "prune/latency_fraction_by_mask": "by_mask",
    "shrink/training_macs_fraction": "in_training",
    "train/lasso_term": "lasso_term",
}
_SWEPT_SECTIONS = ("train", "training", "prune", "shrink")
_RESULTS = ("prune/macs_fraction_living", "train/images_per_second")
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
    settings, score = _settings(config), f"validation/{TASKS[config.task].score}"
    metrics = [hparams.Metric(tag, group=subrun_of(tag), display_name=tag) for tag in (score, *_RESULTS)]
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


def subrun_of(tag: str) -> str | None:
    """Return the folder, within that of the event files, in which a curve is; None for those that are in no other.

    TensorBoard colors curves by run and not by tag. So of two curves in one chart one is a run of its own.

    Args:
        tag: Tag of the curve.
    """
    if tag.startswith("validation/"):
        return "validation"
    return _SUBRUNS.get(tag)


def _settings(config: Config) -> dict[str, Any]:
    document = config.to_dict()
    sections = ((name, document[name.split(".")[0]]) for name in _SWEPT_SETTINGS)
    settings = {
        name: section[name.split(".")[1]] if isinstance(section, dict) else section
        for name, section in sections
        if section is not None
    }
    changed = {name: value for name, (_, value) in changed_settings(config).items()}
    settings |= {name: value for name, value in changed.items() if name.split(".")[0] in _SWEPT_SECTIONS}
    return {
        name: value if isinstance(value, bool | int | float | str) else "none" if value is None else str(value)
        for name, value in settings.items()
    }


def _write(summary: Any) -> None:
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)
