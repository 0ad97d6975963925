"""The base model of a pruning run: its weights, and a check that it is worth pruning."""

import json
import logging
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.files import CheckpointFolder
from resrep_dist.checkpoints.same_data import check_same_data
from resrep_dist.config import Config
from resrep_dist.config.tasks import TASKS
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.stopping import StopRequest
from resrep_dist.errors import ModelError
from resrep_dist.graph import copy_weights
from resrep_dist.models.files import load_weights, save_model
from resrep_dist.reporting.problems import guessing_limit
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import fingerprints, pruning_of
from resrep_dist.training.trainer import Trainer

from tensorflow import keras

_log = logging.getLogger(__name__)
# Points of percent by which two evaluations of one model on one set may differ, by rounding on other hardware.
_MAX_DIFFERENCE = 0.5


def obtain_base(model: keras.Model, config: Config, stop: StopRequest, setting: dict[str, Any]) -> None:
    """Set the base weights on all ranks: those of an earlier start, of a file, or newly trained ones. A collective.

    Args:
        model: The model, changed in place.
        config: The configuration of the run.
        stop: The request that can stop the base training.
        setting: Data, ranks, folder and console, as arguments of `Trainer`.

    Raises:
        ModelError: If the weights do not fit, or the base guesses; see `check_base`.
        StoppedError: If the run was asked to stop.
    """
    cluster: Cluster = setting["cluster"]
    workdir: Path = setting["workdir"]
    path = workdir / "base" / "model.h5"
    weights = config.model.weights
    if cluster.from_root(path.exists):
        cluster.from_root(lambda: _check_data(setting))
        cluster.from_root(lambda: load_weights(model, path))
    elif weights is not None:
        cluster.from_root(lambda: load_weights(model, Path(weights)))
    elif config.base is not None:
        trainer = Trainer(model, None, config, **setting)
        trainer.run(stop)
        copy_weights(trainer.evaluated_model, model)
    cluster.broadcast(model.weights)
    if cluster.from_root(lambda: CheckpointFolder(workdir / "checkpoints").newest_step()) is None:
        check_base(model, config, setting["validation_data"], cluster)
    if not cluster.from_root(path.exists):
        cluster.from_root(lambda: save_model(model, path))


def check_base(model: keras.Model, config: Config, validation_data: ImageSource, cluster: Cluster) -> float:
    """Evaluate the base before it is pruned, and refuse one that guesses. A collective.

    Args:
        model: The model with its base weights.
        config: The configuration of the run.
        validation_data: The validation set.
        cluster: The ranks.

    Returns:
        Its score on the validation set, percent: top-1, or that of another task.

    Raises:
        ModelError: If its score is below `prune.min_base_top1`, or near guessing. The message has likely causes.
    """
    evaluator, num_images = Evaluator(model, task=config.task), len(validation_data)
    score = evaluator.score(validation_data, config.data.evaluation_batch_size, cluster)
    guessing = evaluator.guessing
    _log.info(
        "The base before pruning: validation %s %.2f %% on %d images; guessing gives %.2f %%.",
        score.name,
        score.value,
        num_images,
        guessing,
    )
    earlier = cluster.from_root(lambda: _earlier_score(config))
    if earlier is not None and abs(score.value - earlier) > _MAX_DIFFERENCE:
        _log.warning(
            "The report beside the base's file says %.2f %%, %.2f %% were found here: the validation set, its labels "
            "or its pixels may be others.",
            earlier,
            score.value,
        )
    limit = pruning_of(config).min_base_top1
    if score.value >= (guessing_limit(guessing) if limit == "auto" else limit):
        return score.value
    wanted = "it is hardly better than guessing" if limit == "auto" else f"prune.min_base_top1 is {limit:g}"
    raise ModelError(
        f"the base model: validation {score.name} {score.value:.2f} % on {num_images} images, guessing gives "
        f"{guessing:.2f} %; {wanted}, so it is not pruned. {_likely_causes(config)}. To prune it all the same, set "
        "prune.min_base_top1: 0"
    )


def _check_data(setting: dict[str, Any]) -> None:
    """Check the data of a run that was stopped after the base model was trained and before its first checkpoint."""
    workdir = setting["workdir"]
    if CheckpointFolder(workdir / "checkpoints").newest_step() is None:
        position = CheckpointFolder(workdir / "base" / "checkpoints").restore_newest({}, is_whole=False)
        if position is not None:
            current = fingerprints(setting["train_data"], setting["validation_data"])
            accepts = setting["accepts_changed_data"]
            check_same_data(position.get("data"), current, position["step"], accepts_change=accepts)


def _likely_causes(config: Config) -> str:
    if config.base is not None:
        return "Likely causes: the section `base` is too short, or its learning rate too high or too low"
    return (
        "Likely causes: the pixels are scaled otherwise than the model was trained with, its classes have another "
        "order (folders are sorted by name), a softmax inside of the model, or weights of another model"
    )


def _earlier_score(config: Config) -> float | None:
    """Return the score in the report that a run left beside the file of the base; None if there is none."""
    name = config.model.name
    path = Path(config.model.weights or name.removeprefix("file:"))
    if config.model.weights is None and name == str(path):
        return None
    folder = path.parent
    key = "trained" if path.name == "trained.h5" else folder.name  # base, slim or final
    for report in (folder / "report.json", folder.parent / "slim" / "report.json"):
        try:
            return float(json.loads(report.read_text(encoding="utf-8"))[key][TASKS[config.task].score])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # no report, or not one of a run
    return None
