"""Models by name. Every builder gives logits: no softmax at the end."""

import difflib
from collections.abc import Callable
from functools import partial

from resrep_dist.config import ModelConfig
from resrep_dist.errors import ConfigError
from resrep_dist.models.mobilenet import mobilenet_v1
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.models.resnet_imagenet import imagenet_resnet
from resrep_dist.models.vgg import vgg16

from tensorflow import keras

_BUILDERS: dict[str, Callable[[int, int], keras.Model]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v1": mobilenet_v1,
    "vgg16": vgg16,
}


def build_model(config: ModelConfig) -> keras.Model:
    """Build the model that the configuration names, with fresh weights.

    Raises:
        ConfigError: for an unknown name, with the nearest one.
    """
    if config.name not in _BUILDERS:
        near = difflib.get_close_matches(config.name, _BUILDERS, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise ConfigError(f"model.name: received '{config.name}'; {hint}expected one of {', '.join(_BUILDERS)}")
    return _BUILDERS[config.name](config.image_size, config.num_classes)
