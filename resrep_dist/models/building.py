"""Builds models by name. All of them return logits: there is no softmax at the end."""

import importlib
import inspect
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from resrep_dist.config import ModelConfig
from resrep_dist.config.model_names import did_you_mean, unknown_model
from resrep_dist.errors import ConfigError, ModelError, one_line
from resrep_dist.graph import flatten
from resrep_dist.models.files import load_model
from resrep_dist.models.mobilenet import mobilenet_v1
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.models.resnet_imagenet import imagenet_resnet
from resrep_dist.models.softmax import ends_in_softmax, without_softmax
from resrep_dist.models.vgg_cifar import cifar_vgg16

from tensorflow import keras

_log = logging.getLogger(__name__)

_BUILDERS: dict[str, Callable[[int, int], keras.Model]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v1": mobilenet_v1,
    "vgg16_cifar": cifar_vgg16,
}


def build_model(config: ModelConfig) -> keras.Model:
    """Build the model that a configuration names, flat and without a softmax.

    Args:
        config: The section `model`. Its `weights` are not loaded.

    Returns:
        A model [N, image_size, image_size, channels] -> [N, num_classes], with new weights unless the name begins with
        `file:` or `python:`.

    Raises:
        ConfigError: If the name is not known, or the model cannot be built for images of this size.
        ModelError: If a file or a function does not give a model with one such input and output.
    """
    # Layers without a name get the same ones however often the process has built the model: checkpoints hold them.
    keras.backend.reset_uids()
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
    model = _logits_only(model)
    _check(model, config)
    # Flat, as it is traced, trained and saved.
    return flatten(model)


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
    model = function(image_size=config.image_size, num_classes=config.num_classes)
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"model {config.name}: returned a {type(model).__module__}.{type(model).__name__}, expected a Keras 2 "
            "model; import resrep_dist before TensorFlow and take `from tensorflow import keras`"
        )
    return model


def _logits_only(model: keras.Model) -> keras.Model:
    """Return the model without its softmax, since loss and certificate are computed from logits."""
    if not ends_in_softmax(model):
        return model
    _log.info("The softmax at the end of %s is left out: training and comparison take its logits.", model.name)
    return without_softmax(model)


def _check(model: keras.Model, config: ModelConfig) -> None:
    received, size = f"model {config.name}: ", config.image_size
    try:
        shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    except (AttributeError, TypeError):
        raise ModelError(f"{received}it has no fixed inputs; expected a functional or Sequential model") from None
    if len(shapes) != 2 or len(shapes[0]) != 4 or shapes[0][1:3] != (size, size):
        raise ModelError(
            f"{received}inputs and outputs have shapes {shapes}, expected one input [None, {size}, {size}, channels] "
            "(channels last) and one output; model.image_size must be that of the model"
        )
    if shapes[1][1:] != (config.num_classes,):
        raise ModelError(
            f"{received}its output has shape {list(shapes[1])}, model.num_classes is {config.num_classes}; "
            "make them equal"
        )
