"""Builds models by name. There is no softmax at their end: they return logits, or what a sigmoid makes of them."""

import importlib
import inspect
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from resrep_dist.config import ModelConfig
from resrep_dist.config.model_names import did_you_mean, unknown_model
from resrep_dist.errors import ConfigError, ModelError, one_line
from resrep_dist.graph import flatten
from resrep_dist.graph.table import OPERATORS
from resrep_dist.layers.replacement import pure_precision, with_precision
from resrep_dist.models.files import load_model
from resrep_dist.models.mobilenet import mobilenet_v1
from resrep_dist.models.naming import renumbered, with_first_names
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.models.resnet_imagenet import imagenet_resnet
from resrep_dist.models.softmax import ends_in_sigmoid, ends_in_softmax, without_softmax
from resrep_dist.models.vgg_cifar import cifar_vgg16

import numpy as np
from tensorflow import keras

_log = logging.getLogger(__name__)
_MAX_TRIES = 10
_WITH_LOGITS = (keras.layers.Dense, keras.layers.Conv2D, keras.layers.Add)

_BUILDERS: dict[str, Callable[[int, int], keras.Model]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v1": mobilenet_v1,
    "vgg16_cifar": cifar_vgg16,
}


def build_model(config: ModelConfig, task: str = "classification") -> keras.Model:
    """Build the model that a configuration names, flat and without a softmax; a sigmoid stays.

    Args:
        config: The section `model`. Its `weights` are not loaded.
        task: What its outputs say; see `Config.task`.

    Returns:
        A model [N, image_size, image_size, channels] -> [N, num_classes], with new weights unless the name begins with
        `file:` or `python:`. That of a file may have another width, since a program prunes it with images of any size.

    Raises:
        ConfigError: If the name is not known, or the model cannot be built for images of this size.
        ModelError: If a file or a function does not give a model with one such input and output, or one whose outputs
            are probabilities in a way that is not known.
    """
    _restart_numbers()
    kind, _, rest = config.name.partition(":")
    if config.name in _BUILDERS:
        model = _build(_BUILDERS, config.name, config)
    elif message := unknown_model(config.name):
        raise ConfigError(message)
    elif kind == "keras":
        model = _build(_applications(), rest, config)
    elif kind == "file":
        model = load_model(Path(rest), open_size=config.image_size)
    else:
        model = _call_users_function(rest, config)
    return _finished(model, config, task)


def _restart_numbers() -> None:
    """Give layers without a name the same ones however often the process builds a model: checkpoints hold them."""
    keras.backend.reset_uids()


def _finished(model: keras.Model, config: ModelConfig, task: str) -> keras.Model:
    _check(model, config, task)
    precision = pure_precision(model)
    if precision is not None:
        _log.info("The weights of %s are %s; they become float32, see training.precision.", model.name, precision)
        model = with_precision(model, "float32")
    # Flat, as it is traced, trained and saved.
    return logits_only(flatten(model))


def _build(builders: dict[str, Callable[[int, int], keras.Model]], name: str, config: ModelConfig) -> keras.Model:
    if name not in builders:
        raise ConfigError(
            f"model.name: received '{config.name}'; {did_you_mean(name, builders)}expected one of {', '.join(builders)}"
        )
    try:
        return builders[name](config.image_size, config.num_classes)
    except ValueError as error:
        raise ConfigError(
            f"model.image_size: {config.name} cannot be built for {config.image_size} pixels ({one_line(error)}); "
            "expected a larger image_size"
        ) from None


def _applications() -> dict[str, Callable[[int, int], keras.Model]]:
    """Return the classification models of keras.applications, without weights, which would be downloaded."""

    def build(function: Callable[..., keras.Model], image_size: int, num_classes: int) -> keras.Model:
        shape = (image_size, image_size, 3)
        return function(weights=None, input_shape=shape, classes=num_classes, classifier_activation=None)

    found = {name: getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()}
    return {
        name: partial(build, function)
        for name, function in found.items()
        if {"classes", "weights"} <= inspect.signature(function).parameters.keys()
    }


def _call_users_function(name: str, config: ModelConfig) -> keras.Model:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"model.name: received '{config.name}', expected python:<module>:<function>")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can raise anything
        raise ConfigError(
            f"model.name: module '{module_name}' cannot be imported ({type(error).__name__}: {one_line(error)}); "
            "put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"model.name: module '{module_name}' has no function '{function_name}'")
    model = _with_one_set_of_names(partial(function, image_size=config.image_size, num_classes=config.num_classes))
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"model {config.name}: returned a {type(model).__module__}.{type(model).__name__}, expected a Keras 2 "
            "model; import resrep_dist before TensorFlow and take `from tensorflow import keras`"
        )
    is_functional = getattr(model, "_is_graph_network", False)
    return with_first_names(model, function, config.image_size, config.num_classes) if is_functional else model


def _with_one_set_of_names(build: Callable[[], Any]) -> Any:
    """Call a function that builds a model, so that its layers have the same names in every call."""
    # Again, after the import of the module, which may build layers too, but only once.
    _restart_numbers()
    for number in range(_MAX_TRIES):
        try:
            model = build()
        except ValueError as error:
            # A layer that the module has kept has the name of one that was created now. Keras counts on from there.
            if "should be unique" not in str(error) or number == _MAX_TRIES - 1:
                raise
        else:
            return renumbered(model) if number else model
    raise AssertionError("the loop returns or raises")


def logits_only(model: keras.Model) -> keras.Model:
    """Return a model without its softmax, since loss and certificate are computed from logits.

    Args:
        model: A flat functional model.

    Raises:
        ModelError: If its outputs are probabilities in a way that is not known.
    """
    if ends_in_softmax(model):
        _log.info("The softmax at the end of %s is left out: training and comparison take its logits.", model.name)
        return without_softmax(model)
    last = model.outputs[0].node.layer
    # What comes out of these is no probability, and a forward pass of a large model takes its time.
    if not ends_in_sigmoid(model) and not isinstance(last, _WITH_LOGITS):
        _require_logits(model, last)
    return model


def _require_logits(model: keras.Model, last: keras.layers.Layer) -> None:
    """Refuse a model whose outputs for noise are probabilities, made by a layer that cannot be taken off."""
    noise = np.random.default_rng(0).normal(scale=50.0, size=(8, *model.input_shape[1:])).astype(np.float32)
    outputs = np.asarray(model(noise, training=False), np.float64)
    if np.isfinite(outputs).all() and outputs.min() >= 0 and np.allclose(outputs.sum(-1), 1, atol=1e-2):
        raise ModelError(
            f"model {model.name}: its outputs are probabilities, made by {last.name}, a {type(last).__name__}, which "
            "is no softmax that can be taken off; end the model in logits, or in keras.layers.Softmax()"
        )
    has_own_function = type(last) in (keras.layers.Lambda, keras.layers.Activation) or type(last).__name__ in OPERATORS
    if has_own_function and outputs.min() >= 0 and 0 < outputs.max() <= 1:
        raise ModelError(
            f"model {model.name}: its outputs lie between 0 and 1, as those of a sigmoid, made by {last.name}, a "
            f"{type(last).__name__}, which is not known as one; end the model in logits, or in "
            "keras.layers.Activation('sigmoid')"
        )


def _check(model: keras.Model, config: ModelConfig, task: str) -> None:
    received, size = f"model {config.name}: ", config.image_size
    try:
        shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    except (AttributeError, TypeError):
        raise ModelError(f"{received}it has no fixed inputs; expected a functional or Sequential model") from None
    # A program may prune a file's model with images that are no squares; `check_images` compares it with them.
    widths = shapes[0][2:3] if config.name.startswith("file:") else (size,)
    if len(shapes) != 2 or len(shapes[0]) != 4 or shapes[0][1:3] != (size, *widths):
        raise ModelError(
            f"{received}inputs and outputs have shapes {shapes}, expected one input [None, {size}, {size}, channels] "
            "(channels last) and one output; model.image_size must be that of the model. Models with several inputs or "
            "outputs are pruned in Keras' own `fit` with resrep_dist.ChannelMasks, as in "
            "examples/two_headed_detector.py"
        )
    require_fitting_end(model, task)
    if task == "classification":
        require_classes(received, shapes[1])
    if task == "segmentation" and len(shapes[1]) == 4 and shapes[1][-1] == config.num_classes:
        return
    if len(shapes[1]) == 4 and task == "classification":
        raise ModelError(
            f"{received}its output is a map of shape {list(shapes[1])}; for one class for each pixel set task: "
            "segmentation, for other maps use Keras' own `fit` with resrep_dist.ChannelMasks, as in "
            "examples/two_headed_detector.py"
        )
    if task == "segmentation":
        raise ModelError(
            f"{received}its output has shape {list(shapes[1])}, but task is segmentation; expected [None, height, "
            f"width, {config.num_classes}], with model.num_classes on the last axis"
        )
    if shapes[1][1:] != (config.num_classes,):
        raise ModelError(
            f"{received}its output has shape {list(shapes[1])}, model.num_classes is {config.num_classes}; "
            "make them equal"
        )


def require_fitting_end(model: keras.Model, task: str) -> None:
    """Raise a ModelError for a softmax, whose classes exclude each other, where an image may have several labels."""
    if task == "multilabel" and ends_in_softmax(model):
        raise ModelError(
            f"model {model.name}: it ends in a softmax, whose classes exclude each other, but task is multilabel; end "
            "it in a sigmoid or in logits"
        )


def require_classes(received: str, shape: tuple[int | None, ...]) -> None:
    """Check that a model has more than one output.

    Args:
        received: Beginning of the message: what was received.
        shape: Shape of the output.

    Raises:
        ModelError: If it has one, as for two classes with a sigmoid.
    """
    if shape[1:] == (1,):
        raise ModelError(
            f"{received}its output is a single number, as with two classes and a sigmoid; expected one output for each "
            "class: end it in keras.layers.Dense(2) and set model.num_classes: 2, with the labels 0 and 1. To keep it, "
            "set task: multilabel and model.num_classes: 1 in a configuration, with the labels 0 and 1 in an npz file"
        )
