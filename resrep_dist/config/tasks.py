"""The tasks: what the labels of an image say, and which score says how good a model is."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

TaskName = Literal["classification", "multilabel", "segmentation"]


class Task(NamedTuple):
    """What differs between the tasks."""

    loss: str
    """The loss in place of the default one."""
    score: str
    """Key of the score by which models are compared, percent; see `SCORE_NAMES`."""
    training_score: str
    """Key of the score of the training batches, percent; see `SCORE_NAMES`."""
    sources: tuple[str, ...] | None
    """The data sources that have its labels; None for all."""
    labels: str
    """What its labels are, for messages."""


TASKS: dict[str, Task] = {
    "classification": Task(
        "sparse_categorical_crossentropy", "top1", "top1", None, "one class for each image, whole numbers [N]"
    ),
    "multilabel": Task(
        "binary_crossentropy", "mean_average_precision", "label_accuracy", ("npz", "arrays"),
        "0 or 1 for each class of each image [N, num_classes]",
    ),
    "segmentation": Task(
        "sparse_categorical_crossentropy", "mean_iou", "pixel_accuracy", ("npz", "arrays"),
        "one class for each pixel, whole numbers [N, height, width]",
    ),
}  # fmt: skip
SCORE_NAMES = {
    "top1": "top-1", "mean_average_precision": "mAP", "mean_iou": "mean IoU",
    "label_accuracy": "label accuracy", "pixel_accuracy": "pixel accuracy", "top5": "top-5", "f1": "F1",
}  # fmt: skip
"""Names of scores in percent, for people."""
_SCORES = tuple(task.score for task in TASKS.values())


class Score(NamedTuple):
    """The score by which models are compared."""

    key: str
    """Its key in reports and curves."""
    name: str
    """Its name for people."""
    value: float
    """Percent."""


def score_of(values: Mapping[str, float]) -> Score:
    """Return the score among the values of an evaluation or the figures of a model.

    Args:
        values: What `Evaluator.evaluate` returned, or a model's part of a report.
    """
    key = next(key for key in _SCORES if key in values)
    return Score(key, SCORE_NAMES[key], float(values[key]))


def named_scores(values: Mapping[str, float]) -> list[str]:
    """Return the values of an evaluation as people read them, the score first.

    Args:
        values: What `Evaluator.evaluate` returned.
    """
    first = score_of(values).key
    keys = [first, *(key for key in values if key != first)]
    return [
        f"{SCORE_NAMES[key]} {values[key]:.2f} %" if key in SCORE_NAMES else f"{key} {values[key]:.4g}" for key in keys
    ]
