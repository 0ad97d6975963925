"""What is checked before a phase starts: its data, its model and its settings fit together."""

import logging

from resrep_dist.config import Config, DataConfig, PruneConfig
from resrep_dist.config.tasks import TASKS
from resrep_dist.data.rand_augment import check_rand_augment
from resrep_dist.data.source import ImageSource, Source
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.graph import Graph, require_functional
from resrep_dist.models.softmax import ends_in_softmax
from resrep_dist.pruning.targets import require_prunable, require_reachable_target
from resrep_dist.training.losses import make_loss, make_metrics
from resrep_dist.training.phase import pruning_of

import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)
_MIN_IMAGES_PER_GPU = 32
# ONNX Runtime's blocked convolutions refuse input channels that are no multiple of this (its tests of MLAS say so).
_FAST_MULTIPLE = 4
# Tensor cores take channels in blocks of so many.
_FAST_MULTIPLE_ON_GPU = 8


def check_start(
    config: Config,
    model: keras.Model,
    graph: Graph | None,
    train_data: ImageSource,
    validation_data: ImageSource,
    num_ranks: int,
) -> None:
    """Check that a phase can start: its data, its model and its settings fit together.

    A softmax at the end of the model is said: it is no error, since the loss then takes its probabilities.

    Args:
        config: The configuration of the run.
        model: The model.
        graph: What the phase prunes; None for training without pruning.
        train_data: The training set.
        validation_data: The validation set.
        num_ranks: Number of ranks.

    Raises:
        ConfigError: As in `check_data`, `check_rand_augment` and `check_images`, if what is no image is to be
            augmented, and if the target cannot be reached.
        ModelError: If the model is no functional one of Keras 2 or has several inputs or outputs, or the graph has
            nothing to prune.
    """
    require_functional(model)
    require_one_input_and_output(model)
    check_data(config, train_data, num_ranks)
    _check_labels(config, validation_data, "validation labels")
    check_rand_augment(config.data, train_data)
    for source in (train_data, validation_data):
        check_images(model, source)
    _check_augmentation(config.data, train_data)
    if graph:
        require_prunable(model.name, graph)
        require_reachable_target(graph, pruning_of(config))
        note_widths(pruning_of(config))
    if ends_in_softmax(model):
        _log.warning(
            "The model %s ends in a softmax, so that the loss and the comparison of the slim model take probabilities. "
            "Give one that ends in logits; resrep_dist.prune and the command line take the softmax off by themselves.",
            model.name,
        )


def _check_labels(config: Config, data: ImageSource, what: str = "labels") -> None:
    if data.num_classes != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes: received {config.model.num_classes}, expected {data.num_classes} as in the {what} of "
            f"data.source {config.data.source}"
        )
    if data.task != config.task:
        raise ConfigError(
            f"task: received '{config.task}', which needs {TASKS[config.task].labels}, but the {what} of data.source "
            f"{config.data.source} are {TASKS[data.task].labels}; set task: {data.task}, or give other labels"
        )


def require_one_input_and_output(model: keras.Model) -> None:
    """Raise a ModelError for a model with several inputs or outputs, or with one in a dict, which says what to do."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(
            f"model {model.name}: received {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one "
            "of each; prune it in Keras' own `fit` with resrep_dist.ChannelMasks, as in examples/two_headed_detector.py"
        )
    if isinstance(model.input, dict) or isinstance(model.output, dict):
        raise ModelError(
            f"model {model.name}: its input or output is a dict, expected a tensor; give "
            "keras.Model(model.inputs[0], model.outputs[0]), which has the same weights"
        )


def check_data(config: Config, train_data: ImageSource, num_ranks: int) -> None:
    """Check that the training data fits the settings, and warn of parts that are too small for a GPU.

    Args:
        config: The configuration of the run.
        train_data: The training set.
        num_ranks: Number of ranks.

    Raises:
        ConfigError: If the data has another number of classes, or the global batch has less than one sample for each
            rank and accumulation step.
    """
    _check_labels(config, train_data)
    min_batch_size = num_ranks * config.training.gradient_accumulation_steps
    if config.data.global_batch_size < min_batch_size:
        raise ConfigError(
            f"data.global_batch_size: received {config.data.global_batch_size}, expected at least one sample for each "
            f"of the {num_ranks} ranks in each of {config.training.gradient_accumulation_steps} accumulation steps"
        )
    num_images = config.data.global_batch_size / min_batch_size
    if num_images < _MIN_IMAGES_PER_GPU and tf.config.list_physical_devices("GPU"):
        _log.warning(
            "data.global_batch_size: %d on %d ranks is %.3g image(s) at a time for a GPU, which mostly waits with "
            "less than %d. Take fewer ranks, or a larger batch with train.reference_batch_size and "
            "train.warmup_epochs.",
            config.data.global_batch_size,
            num_ranks,
            num_images,
            _MIN_IMAGES_PER_GPU,
        )


def check_loss_and_metrics(model: keras.Model, config: Config) -> None:
    """Check what all phases need before the first one is trained.

    Args:
        model: The model.
        config: The configuration of the run.

    Raises:
        ConfigError: If the loss or a metric is unknown, or does not fit the model.
    """
    make_loss(config.training, model, config.task)
    make_metrics(config.training.metrics, model, config.task)


def check_images(model: keras.Model, source: ImageSource) -> None:
    """Check that the images have the shape that the model expects.

    Args:
        model: The model.
        source: The data.

    Raises:
        ConfigError: If the shapes differ.
    """
    expected, received = model.input_shape[1:], source.first_images(1).shape[1:]
    fits = len(expected) == len(received)
    if not fits or any(wanted not in (None, found) for wanted, found in zip(expected, received, strict=True)):
        # Grayscale files are read in three channels.
        hint = "; arrays in a program keep their one channel" if expected[-1] == 1 and received[-1] == 3 else ""
        raise ConfigError(
            f"model.name: {model.name} takes images of height, width and channels {expected}, but those of data.source "
            f"are {received}; give another model or other data{hint}"
        )
    if isinstance(source, Source) and source.task == "segmentation":
        masks, outputs = source.labels.shape[1:], model.output_shape[1:-1]
        if masks != outputs:
            raise ConfigError(
                f"model.name: {model.name} returns maps of height and width {outputs}, but the masks of "
                f"data.source are {masks}; give another model or masks of its size"
            )


def _check_augmentation(data: DataConfig, source: ImageSource) -> None:
    """Refuse what moves or mixes pixels of images for other samples, such as signals [N, length, channels]."""
    shape = source.first_images(1).shape[1:]
    if len(shape) == 3:
        return
    off = {"augmentation": "none", "rand_augment": None, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    for name, value in off.items():
        received = getattr(data, name)
        if received != value:
            raise ConfigError(
                f"data.{name}: received {received!r}, which is for images of height, width and channels, but the "
                f"samples have shape {shape}; set data.{name}: {'null' if value is None else value}"
            )


def note_widths(prune: PruneConfig) -> None:
    """Say which widths are fast if the settings do not ask for them.

    Args:
        prune: The section `prune`.
    """
    # A table of times knows which widths are fast.
    if prune.goal.costs is not None:
        return
    if prune.round_to % _FAST_MULTIPLE_ON_GPU and tf.config.list_physical_devices("GPU"):
        _log.info(
            "prune.round_to is %d. On a GPU most layers are faster with multiples of %d channels: with "
            "prune.round_to: %d a training step of a slim ResNet-50 took 0.83 of the time on an H200. The accuracy was "
            "not compared.",
            prune.round_to, _FAST_MULTIPLE_ON_GPU, _FAST_MULTIPLE_ON_GPU,
        )  # fmt: skip
    elif prune.round_to % _FAST_MULTIPLE:
        _log.info(
            "prune.round_to is %d. Slim models are faster on most CPUs with multiples of %d channels: with "
            "prune.round_to: %d a slim ResNet-56 took 0.58 to 0.76 of the time in ONNX Runtime, at the same accuracy.",
            prune.round_to, _FAST_MULTIPLE, _FAST_MULTIPLE,
        )  # fmt: skip
