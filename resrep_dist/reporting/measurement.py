"""Measures models: accuracy, parameters, latency, size of the file."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.data.source import ImageSource
from resrep_dist.training.evaluation import Evaluator

import numpy as np
import tensorflow as tf
from tensorflow import keras

_NUM_TIMINGS = 50


def measure_models(
    models: dict[str, keras.Model],
    files: dict[str, Path],
    macs: Mapping[str, int | None],
    validation_data: ImageSource,
    metrics: Sequence[str],
    batch_size: int,
    task: str = "classification",
) -> dict[str, Any]:
    """Measure models on the validation set.

    Args:
        models: Models by name.
        files: The file of each model.
        macs: Multiply-adds of each model for one image; None if they are not known.
        validation_data: The validation set.
        metrics: Names of Keras metrics.
        batch_size: Number of images that are evaluated at once.
        task: What the labels say; see `Config.task`.

    Returns:
        For each model `top1` and `top5` (percent) or the scores of another task, the configured metrics, `guessing`
        (the score of a model that guesses), `macs`, `parameters`, `latency_ms` and `file_bytes`.
    """
    latencies = measure_latencies(models, validation_data.first_images(1)[0])
    evaluators = {name: Evaluator(model, metrics, task) for name, model in models.items()}
    return {
        name: {
            **evaluators[name].evaluate(validation_data, batch_size),
            "guessing": evaluators[name].guessing,
            "macs": macs[name],
            "parameters": count_parameters(model),
            "latency_ms": latencies[name],
            "file_bytes": files[name].stat().st_size,
        }
        for name, model in models.items()
    }


def measure_latencies(models: dict[str, keras.Model], image: np.ndarray) -> dict[str, float]:
    """Measure the median time of one image through each model, milliseconds.

    The models are timed in turn, so that a change of the machine's speed affects all of them.

    Args:
        models: Models by name.
        image: The image, [height, width, channels].
    """
    batch = tf.constant(image[np.newaxis])
    functions = {name: _inference(model) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(_NUM_TIMINGS + 5):
        for name, function in functions.items():
            start = time.perf_counter()
            function(batch).numpy()
            if round_number >= 5:
                times[name].append(1000.0 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def count_parameters(model: keras.Model) -> int:
    """Return the number of parameters that a model needs for inference, which excludes masks.

    Args:
        model: A Keras model.
    """
    return sum(int(np.prod(w.shape)) for w in model.weights if not w.name.endswith("/mask:0"))


def _inference(model: keras.Model) -> Any:
    return tf.function(lambda batch: model(batch, training=False))
