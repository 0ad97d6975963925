"""The results of a run: the slim or the final model, its measurements, its report."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.average import evaluated_variables
from resrep_dist.checkpoints.files import CheckpointFolder, Variables, VariablesAt, restore
from resrep_dist.config import Config
from resrep_dist.data.loading import load_sources
from resrep_dist.data.source import ImageSource
from resrep_dist.errors import CheckpointError, ConfigError, ModelError
from resrep_dist.graph import Graph, trace
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import insert_compactors, live_graph, with_compactors
from resrep_dist.merging.certificate import Certificate, certify, check_certificate
from resrep_dist.merging.keras3 import compare_in_keras3
from resrep_dist.merging.merge import merge
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model, load_weights, save_model
from resrep_dist.models.result_folder import EXPORT_NAME, current_folder, recover_folder, replace_folder
from resrep_dist.pruning.deadness import num_masked_alive
from resrep_dist.pruning.goals import goal_of
from resrep_dist.reporting.goals import target_section
from resrep_dist.reporting.measurement import measure_models
from resrep_dist.reporting.problems import problems_of
from resrep_dist.reporting.run_folder import read_curves
from resrep_dist.reporting.savings import savings_of
from resrep_dist.reporting.usage import usage_of
from resrep_dist.runs.workdir import config_of_run, is_same_run
from resrep_dist.shrinking.surgery import with_channels
from resrep_dist.training.best import BEST_NAME

import numpy as np
import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)
NEWEST = "newest"
"""Name of the checkpoint that a run ends with, for `merge_run`."""


def finished_report(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Return the report of a run that is finished with these settings; None otherwise. Nothing on disk changes.

    Args:
        config: The configuration of this start.
        workdir: Folder of the run.
    """
    folder = current_folder(workdir / ("slim" if config.prune else "final"))
    checkpoints = CheckpointFolder(workdir / "checkpoints")
    position = checkpoints.newest_position()
    if position is None or not _ends_training(position, config) or not is_same_run(config, workdir):
        return None
    report = _report_of(folder, _made_from(config, checkpoints, position["step"]), may_be_named=True)
    if report is not None:
        _log.info(
            "This run is finished: %s is kept, it was made from the checkpoint of step %d, with the same settings. "
            "To train on raise train.num_epochs; for other settings use --from %s and another --workdir.",
            folder,
            report["made_from"]["step"],
            workdir,
        )
    return report


def _ends_training(position: dict[str, Any], config: Config) -> bool:
    """Return whether a checkpoint is the end of a training as long as this one.

    `config.yaml` does not tell: a start that extends a finished run writes it, and may end before its first checkpoint.
    """
    try:
        trained_epochs = position["config"]["train"]["num_epochs"]
    except (KeyError, TypeError):
        return False  # of an older version; the Trainer goes on from it, and finds out
    return position.get("is_end") is True and trained_epochs == config.train.num_epochs


def _report_of(folder: Path, made_from: dict[str, Any], may_be_named: bool = False) -> dict[str, Any] | None:
    """Return the report of a result folder if it was made from this; None for none, a damaged or an older one.

    With `may_be_named` it may also be made, with the same settings, from a checkpoint that a user named.
    """
    try:
        report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        is_named = may_be_named and report.get("checkpoint", NEWEST) != NEWEST
        made = report["made_from"]
        is_made = made["merge"] == made_from["merge"] if is_named else made == made_from
        return report if is_made and (folder / "model.h5").exists() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def finish_run(workdir: Path, validation_data: ImageSource) -> dict[str, Any]:
    """Return the report of a trained run; merge or save its model first, unless an earlier start has done so.

    Args:
        workdir: Folder of the run.
        validation_data: The validation set of the run.

    Raises:
        CertificateError: If the outputs of the slim model differ from those of the trained model.
        CheckpointError: If no checkpoint can be loaded.
    """
    config = config_of_run(workdir)
    target = workdir / ("slim" if config.prune else "final")
    recover_folder(target)
    checkpoints = CheckpointFolder(workdir / "checkpoints")
    newest_step = checkpoints.newest_step()
    assert newest_step is not None, "training ends with a checkpoint"
    made_from = _made_from(config, checkpoints, newest_step)
    report = _report_of(target, made_from)
    if report is not None:
        _log.info("%s is kept: it was made from the newest checkpoint, step %d.", target, made_from["step"])
        return report
    return merge_run(workdir, validation_data) if config.prune else save_final(workdir, validation_data)


def merge_run(workdir: Path, validation_data: ImageSource | None = None, checkpoint: str = NEWEST) -> dict[str, Any]:
    """Merge a checkpoint of a run into `slim/`, measure the models, and write the report, on one process.

    The caller holds the lease of the run's folder.

    Args:
        workdir: Folder of the run.
        validation_data: The validation set of the run; None to open it.
        checkpoint: `newest`, `best` (see `BestCheckpoint`), or the number of a step.

    Returns:
        The report.

    Raises:
        CertificateError: If the outputs of the slim model differ from those of the trained model; `slim/` is not
            changed.
        CheckpointError: If no checkpoint can be loaded.
        ConfigError: If the run does not prune.
    """
    config = config_of_run(workdir)
    if config.prune is None:
        raise ConfigError(f"{workdir}: a run without the section `prune` has nothing to merge; see {workdir}/final")
    base = build_model(config.model, config.task)
    graph = trace(base, config.prune.exclude, config.prune.residual_groups)
    load_weights(base, workdir / "base" / "model.h5")
    goal = goal_of(graph, config.prune)
    trained, source = _load_trained(base, graph, workdir, checkpoint, config)
    validation_data = validation_data or load_sources(config.data, config.model, config.task)[1]
    images = validation_data.first_images(config.merge.num_images)
    dead_row_norm = config.prune.dead_row_norm
    slim, certificate = merge(trained, graph, images, tolerance=config.merge.tolerance, dead_row_norm=dead_row_norm)
    partial = _empty_folder(workdir / "slim.partial")
    save_model(slim, partial / "model.h5")
    save_model(trained, partial / "trained.h5")
    slim, certificate = _certified_file(partial / "model.h5", trained, images, certificate.channels)
    check_certificate(certificate, config.merge.tolerance)
    models = {"base": base, "trained": trained, "slim": slim}
    files = {"base": workdir / "base/model.h5", "trained": partial / "trained.h5", "slim": partial / "model.h5"}
    macs = _count_macs(trained, slim, graph)
    report = measure_models(models, files, macs, validation_data, *_evaluation(config)) | {
        "model": config.model.name,
        **target_section(goal, graph, certificate.channels, macs),
        "num_masked_alive": num_masked_alive(with_compactors(trained, graph), graph, dead_row_norm),
        "certificate": vars(certificate),
        **_training(workdir, base, graph, config, source.position["step"]),
        **source.notes(config),
        "usage": usage_of(config, validation_data),
    }
    report["problems"] = problems_of(report, config.model.num_classes)
    _publish(report, partial, workdir / "slim")
    return report


def _certified_file(
    path: Path, trained: keras.Model, images: np.ndarray, channels: dict[str, dict[str, int]]
) -> tuple[keras.Model, Certificate]:
    """Return the slim model as it is in its file, and its certificate: it must hold for that, not only in memory."""
    slim = load_model(path)
    certificate = certify(trained, slim, images, channels)
    if (of_keras3 := compare_in_keras3(trained, path, images)) is not None:
        found = {f"keras3_{name}": value for name, value in of_keras3._asdict().items()}
        certificate = dataclasses.replace(certificate, **found)
    return slim, certificate


def _count_macs(trained: keras.Model, slim: keras.Model, graph: Graph) -> dict[str, int]:
    """Return the multiply-adds of the base model, of the trained model with its compactors, and of the slim model."""
    slim_graph = trace(slim)
    kept = KeptChannels.first_of(live_graph(with_compactors(trained, graph), graph).widths)
    return {
        "base": graph.macs.total(graph.widths),
        "trained": training_macs(trained, graph, kept),
        "slim": slim_graph.macs.total(slim_graph.widths),
    }


def _training(workdir: Path, base: keras.Model, graph: Graph, config: Config, num_steps: int) -> dict[str, Any]:
    """Return what the steps cost; nothing if the curves are gone, or begin later than the training of the model."""
    curves = read_curves(workdir / "tensorboard")
    first_steps = [points[0][0] for points in curves.values() if points]
    if not first_steps or min(first_steps) > config.logging.interval_steps:
        return {}
    macs = training_macs(insert_compactors(base, graph), graph, KeptChannels.all_of(graph))
    fraction, has_teacher = macs / graph.macs.total(graph.widths), config.train.distillation is not None
    return {"training": savings_of(curves, fraction, num_steps, has_teacher=has_teacher)}


def save_final(workdir: Path, validation_data: ImageSource) -> dict[str, Any]:
    """Write the model of a run without pruning to `final/`, measure it, and write the report, on one process.

    The caller holds the lease of the run's folder.

    Args:
        workdir: Folder of the run.
        validation_data: The validation set of the run.

    Returns:
        The report.

    Raises:
        CheckpointError: If no checkpoint can be loaded.
    """
    config = config_of_run(workdir)
    model = build_model(config.model, config.task)
    source = _restore(workdir, evaluated_variables(model, config.train.weight_average_decay is not None))
    partial = _empty_folder(workdir / "final.partial")
    save_model(model, partial / "model.h5")
    try:
        graph = trace(model)
        macs = graph.macs.total(graph.widths)
    except ModelError:
        # A model that cannot be traced can be trained, but its multiply-adds are not known.
        macs = None
    models, files = {"final": model}, {"final": partial / "model.h5"}
    report = measure_models(models, files, {"final": macs}, validation_data, *_evaluation(config))
    report |= {"model": config.model.name, **source.notes(config), "usage": usage_of(config, validation_data)}
    report["problems"] = problems_of(report, config.model.num_classes)
    _publish(report, partial, workdir / "final")
    return report


@dataclasses.dataclass(frozen=True)
class _Restored:
    """A checkpoint that a result is made from."""

    name: str
    folder: CheckpointFolder
    position: dict[str, Any]

    def notes(self, config: Config) -> dict[str, Any]:
        """Return what the report says of it."""
        return {
            "checkpoint": self.name,
            "is_end_of_training": self.position.get("is_end"),
            "made_from": _made_from(config, self.folder, self.position["step"]),
            "early_merge": self.position.get("early_merge"),
        }


def _load_trained(
    base: keras.Model, graph: Graph, workdir: Path, checkpoint: str, config: Config
) -> tuple[keras.Model, _Restored]:
    """Return the model of a checkpoint, with the average of the weights if the run keeps one."""
    whole = insert_compactors(base, graph)
    trained = [whole]
    is_averaged = config.train.weight_average_decay is not None

    def variables_at(position: dict[str, Any]) -> dict[str, tf.Variable]:
        trained[:] = [with_channels(whole, graph, KeptChannels.from_json(graph, position.get("layout")))]
        return evaluated_variables(trained[0], is_averaged)

    source = _restore(workdir, variables_at, checkpoint)
    return trained[0], source


def _restore(workdir: Path, variables: Variables | VariablesAt, checkpoint: str = NEWEST) -> _Restored:
    """Load a checkpoint; of `newest` and `best` the newest that is not damaged."""
    if checkpoint not in (NEWEST, BEST_NAME):
        folder = CheckpointFolder(workdir / "checkpoints")
        return _Restored(checkpoint, folder, restore(folder.path_of(int(checkpoint)), variables, is_whole=False))
    folder = CheckpointFolder(workdir / (BEST_NAME if checkpoint == BEST_NAME else "checkpoints"))
    position = folder.restore_newest(variables, is_whole=False)
    if position is None and checkpoint == BEST_NAME:
        raise CheckpointError(
            f"{workdir}: no best checkpoint; it is kept from the first evaluation on at which the target is reached "
            "and every masked row is dead"
        )
    if position is None:
        raise CheckpointError(f"{workdir}: no checkpoint; `resrep train` writes them")
    return _Restored(checkpoint, folder, position)


def _made_from(config: Config, folder: CheckpointFolder, step: int) -> dict[str, Any]:
    """Return what determines a result, as JSON values. Other settings cannot change within a run."""
    checksum = folder.state_sha256(step)
    return {"step": step, "checkpoint_sha256": checksum, "merge": dataclasses.asdict(config.merge)}


def _evaluation(config: Config) -> tuple[Sequence[str], int, str]:
    return config.training.metrics, config.data.evaluation_batch_size, config.task


def _empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _publish(report: dict[str, Any], partial: Path, target: Path) -> None:
    (partial / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    replace_folder(partial, target)
    if (target.parent / EXPORT_NAME).exists():
        _log.warning(
            "%s holds exports of the previous model; `resrep export %s --format ...` writes them again.",
            target.parent / EXPORT_NAME,
            target.parent,
        )
