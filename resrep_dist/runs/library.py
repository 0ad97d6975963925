"""Prunes a model in one call of a Python program."""

import contextlib
import dataclasses
import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from resrep_dist.config import Config, build_config
from resrep_dist.config.loading import read_settings
from resrep_dist.data.arrays import Data, open_sets
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.lease import hold_lease
from resrep_dist.errors import ConfigError, ModelError, one_line
from resrep_dist.graph import Graph, flatten, require_functional, trace, with_input_size
from resrep_dist.merging.certificate import Certificate
from resrep_dist.merging.merge import merge
from resrep_dist.models.building import logits_only, require_classes, require_fitting_end
from resrep_dist.models.files import save_model
from resrep_dist.monitoring.hooks import Hook, Watched
from resrep_dist.pruning.goals import agree_on_costs, goal_of
from resrep_dist.pruning.targets import require_prunable, require_reachable_target
from resrep_dist.reporting.goals import target_section
from resrep_dist.reporting.measurement import count_parameters
from resrep_dist.reporting.problems import problems_of
from resrep_dist.runs.base import check_base
from resrep_dist.runs.preparation import check_file, with_numbers
from resrep_dist.runs.proposal import proposed_batch_size, proposed_epochs, proposed_pruning, proposed_shrink_mode
from resrep_dist.runs.results import finish_run
from resrep_dist.runs.workdir import open_workdir, with_costs_of_run
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import pruning_of
from resrep_dist.training.start_checks import require_one_input_and_output
from resrep_dist.training.trainer import Trainer

from rich.console import Console
from tensorflow import keras

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """What `prune` returns."""

    slim: keras.Model
    """The slim model, which returns logits."""
    certificate: Certificate
    """Comparison of the slim model with the trained one."""
    report: dict[str, Any]
    """For `base` and `slim` the score (percent, `top1` for classification), `macs` and `parameters`; `target_missed`;
    `problems`. With a `workdir` all that is in its `slim/report.json`."""
    history: list[dict[str, float]]
    """For each evaluation its `step` and the values of `Hook.on_evaluation`."""


def prune(
    model: keras.Model,
    train: Data,
    validation: Data,
    *,
    target: float = 0.5,
    num_epochs: float | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str | None = None,
    cluster: Cluster | None = None,
    console: Console | Literal["default"] | None = "default",
    hooks: Sequence[Hook] = (),
) -> PruneResult:
    """Prune a trained model, on one rank or under a launcher. A collective.

    Args:
        model: A functional or Sequential Keras model with its weights; a softmax at its end is left out.
        train: The training set: a Source, `(images, labels)`, or a `tf.data.Dataset`, which is read into memory. The
            images are as the model expects them, float [N, height, width, channels], the labels are classes or one-hot.
            Rows of 0 and 1 are those of `task: multilabel`, unless all of both sets are one-hot, and labels
            [N, height, width] those of `segmentation`, where 255 or -1 stands for no class.
        validation: The validation set, likewise.
        target: Multiply-adds that may be left, as a fraction.
        num_epochs: Length of the pruning; None for one that fits the number of images.
        settings: Sections whose keys replace the proposed ones, as in `{"train": {"learning_rate": 0.02}}`, with
            Python's or NumPy's numbers.
        workdir: Folder of the run, as the command line writes it; the same call resumes. None to write nothing.
        cluster: The ranks; None for those that the launcher started.
        console: Where progress is shown: by default on the terminal, or in lines. None to show none.
        hooks: Hooks that observe the run; see `Hook`.

    Raises:
        UserError: If the model cannot be pruned, the data does not fit, or the base guesses; see `check_base`.
        CertificateError: If the outputs of the slim model differ from those of the trained one.
    """
    _require_classifier(model)
    settings = read_settings(settings)
    cluster, workdir = cluster or cluster_for(settings), Path(workdir) if workdir is not None else None
    train_data, validation_data = open_sets((train, validation), tuple(model.output_shape))
    require_fitting_end(model, train_data.task)
    model, history = _for_images(model, train_data), _History()
    config = _config(model, train_data, target, num_epochs, settings)
    if workdir:
        config = with_costs_of_run(config, workdir)
    agree_on_costs(cluster, config.prune)
    graph, hooks = _graph(model, config), [history, *hooks]
    options: dict[str, Any] = {"cluster": cluster, "workdir": workdir, "console": console, "hooks": hooks}
    with hold_lease(workdir, cluster) if workdir else contextlib.nullcontext():
        config = _open(workdir, config, model, graph, len(train_data), cluster)
        trainer = Trainer(model, graph, config, train_data, validation_data, **options)
        base_score = check_base(model, config, validation_data, cluster)
        trainer.run()
        slim, certificate = _merged(trainer, config, validation_data)
        if workdir:
            report = cluster.from_root(lambda: finish_run(workdir, validation_data))
        else:
            report = _report(model, base_score, slim, certificate, graph, config, validation_data, cluster)
    return PruneResult(slim, certificate, report, history.values)


def cluster_for(settings: Mapping[str, Any]) -> Cluster:
    """Start the ranks with sums as settings of a run ask for them, by `training.deterministic`.

    Args:
        settings: Sections of settings by name, which are not checked yet. What is missing or wrong counts as the
            default.

    Raises:
        UserError: As `Cluster`.
    """
    training = settings.get("training")
    return Cluster(not isinstance(training, Mapping) or training.get("deterministic") is not False)


def _open(
    workdir: Path | None, config: Config, model: keras.Model, graph: Graph, num_samples: int, cluster: Cluster
) -> Config:
    """Open the folder of the run, with its base model; return the configuration that names this and has no `auto`."""
    if workdir is None:
        return config
    path = workdir.absolute() / "base" / "model.h5"
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=f"file:{path}"))
    config = with_numbers(config, graph, num_samples, workdir, cluster)

    def write() -> None:
        open_workdir(config, workdir)
        try:
            check_file(model, workdir)
        except ModelError as error:
            raise ModelError(f"{error}; without `workdir` no file is needed") from None
        if not path.exists():
            save_model(model, path)

    cluster.from_root(write)
    return config


def _merged(trainer: Trainer, config: Config, validation_data: ImageSource) -> tuple[keras.Model, Certificate]:
    assert trainer.graph is not None
    limits = {"tolerance": config.merge.tolerance, "dead_row_norm": pruning_of(config).dead_row_norm}
    images = validation_data.first_images(config.merge.num_images)
    return merge(trainer.evaluated_model, trainer.graph, images, **limits)


def _require_classifier(model: keras.Model) -> None:
    require_functional(model)
    require_one_input_and_output(model)
    require_classes(f"model {model.name}: ", tuple(model.output_shape))


def _for_images(model: keras.Model, data: ImageSource) -> keras.Model:
    """Return the model flat, with the input size of the images, ending in logits."""
    height, width = data.first_images(1).shape[1:3]
    if None in model.input_shape[1:3]:
        model = with_input_size(model, (height, width))
    return logits_only(flatten(model))


def _graph(model: keras.Model, config: Config) -> Graph:
    graph = trace(model, pruning_of(config).exclude, pruning_of(config).residual_groups)
    require_prunable(model.name, graph)
    require_reachable_target(graph, pruning_of(config))
    return graph


class _History(Hook):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_evaluation(self, trainer: Watched, values: Mapping[str, float], seconds: float) -> None:
        """Keep the values."""
        self.values.append({"step": trainer.step, **values})


def _config(
    model: keras.Model,
    train_data: ImageSource,
    target: float,
    num_epochs: float | None,
    settings: Mapping[str, Any],
) -> Config:
    if settings.get("prune", {}) is None:
        raise ConfigError("settings: prune: received None, expected a section with keys below it; leave it out")
    num_images = len(train_data)
    batch_size = proposed_batch_size(num_images)
    epochs = proposed_epochs(num_images, batch_size) if num_epochs is None else _length(num_epochs)
    num_steps = max(1, round(epochs * num_images / batch_size))
    num_classes, image_size = int(model.output_shape[-1]), int(model.input_shape[1])
    document: dict[str, Any] = {
        "task": train_data.task,
        "model": {"name": model.name, "num_classes": num_classes, "image_size": image_size},
        "data": {"source": "arrays", "global_batch_size": batch_size},
        "train": {"num_epochs": epochs, "learning_rate": 0.01},
        **proposed_pruning(target, proposed_shrink_mode(model), settings),
        "logging": {
            "interval_steps": min(100, max(1, num_steps // 50)),
            "evaluation_epochs": max(1.0, epochs / 20),
        },
    }
    for name, value in settings.items():
        proposed = document.get(name)
        document[name] = {**proposed, **value} if isinstance(proposed, dict) and isinstance(value, Mapping) else value
    return build_config(document, "settings", to_start=False)


def _length(num_epochs: object) -> float:
    """Return a number of epochs that is one, before steps are counted with it."""
    if isinstance(num_epochs, bool) or not isinstance(num_epochs, numbers.Real) or not 0 < float(num_epochs) < math.inf:
        raise ConfigError(
            f"num_epochs: received {one_line(repr(num_epochs))}, expected a number greater than 0: the length of the "
            "pruning in epochs, such as 30, or None for one that fits the number of images"
        )
    return float(num_epochs)


def _report(
    base: keras.Model,
    base_score: float,
    slim: keras.Model,
    certificate: Certificate,
    graph: Graph,
    config: Config,
    validation_data: ImageSource,
    cluster: Cluster,
) -> dict[str, Any]:
    slim_graph, goal = trace(slim), goal_of(graph, pruning_of(config))
    evaluator = Evaluator(slim, task=config.task)
    score = evaluator.score(validation_data, config.data.evaluation_batch_size, cluster)
    macs, slim_macs = graph.macs.total(graph.widths), slim_graph.macs.total(slim_graph.widths)
    guessing = {"guessing": evaluator.guessing}
    report: dict[str, Any] = {
        "base": {score.key: base_score, **guessing, "macs": macs, "parameters": count_parameters(base)},
        "slim": {score.key: score.value, **guessing, "macs": slim_macs, "parameters": count_parameters(slim)},
        **target_section(goal, graph, certificate.channels, {"base": macs, "slim": slim_macs}),
    }
    return report | {"problems": problems_of(report, config.model.num_classes)}
