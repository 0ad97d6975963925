"""Losses and metrics by their Keras names, for integer labels and models that return logits or probabilities."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from resrep_dist.config import TrainingConfig
from resrep_dist.config.tasks import TASKS
from resrep_dist.data.mixing import Labels, mean_of_labels
from resrep_dist.errors import ConfigError, one_line
from resrep_dist.models.softmax import ends_in_probabilities, ends_in_sigmoid, ends_in_softmax

import tensorflow as tf
from tensorflow import keras

SampleLoss = Callable[[Labels, tf.Tensor], tf.Tensor]
"""A function of labels [B, ...] and outputs [B, ..., classes] that returns the loss of each sample, [B]: of masks the
mean over the pixels that have a class."""

_DEFAULT_LOSS = "sparse_categorical_crossentropy"
# Names in these Keras modules that are not losses or metrics of labels and outputs.
_NO_LOSS_OR_METRIC = {
    "get", "serialize", "deserialize", "Loss", "Reduction", "Metric", "Mean", "Sum", "MeanTensor", "MeanMetricWrapper",
}  # fmt: skip
# They have no option `from_logits`, and would return meaningless numbers for logits.
_OF_PROBABILITIES_ONLY = {"kl_divergence", "KLDivergence", "poisson", "Poisson"}


def make_loss(config: TrainingConfig, model: keras.Model, task: str = "classification") -> SampleLoss:
    """Create the configured loss: the loss of each sample, times the weight of its class.

    Losses whose names begin with `sparse` receive labels, all others one-hot vectors. The sum of the weighted losses is
    divided by the number of samples, as in `fit(class_weight=...)`. The loss of a mixed image is the mean over its two
    labels, weighted by their shares.

    Args:
        config: Loss, label smoothing and class weights.
        model: The model whose outputs the loss receives.
        task: What the labels say; see `Config.task`.

    Raises:
        ConfigError: If the name is unknown, the loss does not return one number per sample, or it lacks a configured
            option or is not one for the end of the model.
    """
    name = TASKS[task].loss if config.loss == _DEFAULT_LOSS else config.loss
    if task == "multilabel":
        _require_loss_of_labels(name, config)
    elif name == _DEFAULT_LOSS and config.label_smoothing:
        # It is the same loss, but the sparse form has no label smoothing.
        name = "categorical_crossentropy"
    if ends_in_sigmoid(model) and "categorical" in name.lower():
        raise ConfigError(
            f"training.loss: '{config.loss}' is for a model that ends in logits or a softmax, but {model.name} ends "
            "in a sigmoid; set training.loss: binary_crossentropy, which trains each class against the rest, or leave "
            "out the sigmoid"
        )
    options = {"from_logits": not ends_in_probabilities(model), "reduction": keras.losses.Reduction.NONE}
    if config.label_smoothing:
        options["label_smoothing"] = config.label_smoothing
    found = _named("losses", name, "training.loss")
    parameters = inspect.signature(found).parameters
    if config.label_smoothing and "label_smoothing" not in parameters:
        raise ConfigError(f"training.label_smoothing: training.loss '{name}' has no such option; expected 0")
    if name in _OF_PROBABILITIES_ONLY and not ends_in_softmax(model):
        raise ConfigError(f"training.loss: '{name}' needs probabilities; expected a model that ends in a softmax")
    fitting = {option: value for option, value in options.items() if option in parameters}
    loss = found(**fitting) if inspect.isclass(found) else functools.partial(found, **fitting)
    return _with_labels(loss, name, config.class_weights, model, task)


def _require_loss_of_labels(name: str, config: TrainingConfig) -> None:
    if "categorical" in name.lower():
        raise ConfigError(
            f"training.loss: '{name}' is for one class per image, but task is multilabel; set training.loss: "
            "binary_crossentropy, which trains each class against the rest"
        )
    if config.class_weights:
        raise ConfigError(
            "training.class_weights: they are for one class per image or pixel, but task is multilabel; leave them out"
        )


def make_metrics(names: Sequence[str], model: keras.Model, task: str = "classification") -> list[keras.metrics.Metric]:
    """Create Keras metrics by name, for one-hot labels and probabilities; see `update_metric`.

    Args:
        names: Names of metrics in `keras.metrics`, or of registered ones.
        model: The model whose number of classes they need.
        task: What the labels say; see `Config.task`.

    Raises:
        ConfigError: If a name is unknown, a metric cannot be used on labels and outputs, or its state cannot be summed
            over the ranks.
    """
    num_classes = int(model.output_shape[-1])
    options: dict[str, Any] = {"num_classes": num_classes, "sparse_y_true": False, "sparse_y_pred": False}
    # F1Score has a value for each class unless it is told to take their mean.
    options["average"] = "macro"
    if task == "multilabel":
        # Without it F1Score takes the most likely label of each sample and no other.
        options["threshold"] = 0.5
    metrics = []
    for name in names:
        found = _named("metrics", name, "training.metrics")
        try:
            if inspect.isclass(found):
                parameters = inspect.signature(found).parameters
                metric = found(**{option: value for option, value in options.items() if option in parameters})
            else:
                metric = keras.metrics.MeanMetricWrapper(found, name=name)
            labels, outputs = _example(model, task)
            update_metric(metric, name, labels, outputs + 1.0 / num_classes)
            float(metric.result())
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"training.metrics: '{name}' cannot be used on labels and outputs ({one_line(error, 160)})"
            ) from None
        if any(variable.aggregation != tf.VariableAggregation.SUM for variable in metric.variables):
            raise ConfigError(f"training.metrics: the state of '{name}' cannot be summed over ranks; leave it out")
        metrics.append(metric)
    return metrics


def update_metric(metric: keras.metrics.Metric, name: str, labels: tf.Tensor, probabilities: tf.Tensor) -> None:
    """Add samples to a metric. Of masks it receives the pixels that have a class, as one batch.

    Args:
        metric: The metric.
        name: Its name. If it begins with `sparse`, the metric receives labels, otherwise one-hot vectors, or those of
            several classes as they are.
        labels: Integer labels, [B], [B, classes] or [B, height, width].
        probabilities: Outputs of a softmax or sigmoid, [B, ..., classes].
    """
    if labels.shape.rank == 3:
        labels, probabilities = labels[labels >= 0], probabilities[labels >= 0]
    metric.update_state(_labels_for(name, labels, int(probabilities.shape[-1])), probabilities)


def _example(model: keras.Model, task: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Return labels and outputs of two samples, all 0."""
    outputs = tf.zeros([2, *(size or 1 for size in model.output_shape[1:])], keras.backend.floatx())
    shape = outputs.shape if task == "multilabel" else outputs.shape[:-1]
    return tf.zeros(shape, tf.int64), outputs


def _named(kind: str, name: str, key: str) -> Any:
    module = getattr(keras, kind)
    names = [n for n in dir(module) if not n.startswith("_") and n not in _NO_LOSS_OR_METRIC]
    if name in names and callable(getattr(module, name)):
        return getattr(module, name)
    registered = keras.utils.get_registered_object(name)
    if registered is not None:
        return registered
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise ConfigError(
        f"{key}: received '{name}'; {hint}expected a name of keras.{kind} or `package>name` of a registered one"
    )


def _with_labels(
    loss: SampleLoss, name: str, class_weights: Sequence[float], model: keras.Model, task: str
) -> SampleLoss:
    num_classes = int(model.output_shape[-1])
    if class_weights and len(class_weights) != num_classes:
        raise ConfigError(
            f"training.class_weights: received {len(class_weights)} numbers, expected one for each of the "
            f"{num_classes} classes"
        )

    def of_items(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        losses = loss(_labels_for(name, labels, num_classes), outputs)
        return losses * tf.gather(tf.constant(class_weights, losses.dtype), labels) if class_weights else losses

    def of_masks(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        has_class = tf.cast(labels >= 0, outputs.dtype)
        losses = tf.cast(of_items(tf.maximum(labels, 0), outputs), outputs.dtype) * has_class
        return tf.reduce_sum(losses, [1, 2]) / tf.maximum(tf.reduce_sum(has_class, [1, 2]), 1.0)

    def of_classes(labels: Labels, outputs: tf.Tensor) -> tf.Tensor:
        return mean_of_labels(lambda each: of_items(each, outputs), labels)

    of_samples = of_masks if task == "segmentation" else of_classes
    try:
        shape = of_samples(*_example(model, task)).shape
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training.loss: '{name}' cannot be used ({one_line(error, 160)})") from None
    if shape != [2]:
        raise ConfigError(f"training.loss: '{name}' gave shape {shape} for 2 samples, expected one number for each")
    return of_samples


def _labels_for(name: str, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    if labels.shape.rank == 2:
        return tf.cast(labels, keras.backend.floatx())
    is_sparse = name.rpartition(">")[2].lower().startswith("sparse")
    return labels if is_sparse else tf.one_hot(labels, num_classes, dtype=keras.backend.floatx())
