"""Loads weights of PyTorch models from `.safetensors` files into the ResNets for ImageNet and MobileNet-v1.

The names are those of torchvision's and timm's ResNets, and of timm's `mobilenetv1_100`. The format has arrays and a
JSON header, and no code.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrep_dist.errors import ModelError, UserError, one_line

import numpy as np
from tensorflow import keras

# Our layer's name -> PyTorch's module.
_RESNET = (
    (r"stem", "conv1"),
    (r"stem_bn", "bn1"),
    (r"stage(\d)_block(\d+)_projection", "layer{0}.{1}.downsample.0"),
    (r"stage(\d)_block(\d+)_projection_bn", "layer{0}.{1}.downsample.1"),
    (r"stage(\d)_block(\d+)_(conv\d|bn\d)", "layer{0}.{1}.{2}"),
    (r"logits", "fc"),
)
# timm counts blocks by stage: of 1, 2, 2, 6 and 2 blocks.
_MOBILENET_STAGES = [(stage, index) for stage, num in enumerate((1, 2, 2, 6, 2)) for index in range(num)]
_MOBILENET_LAYERS = {"depthwise": "conv_dw", "bn1": "bn1", "pointwise": "conv_pw", "bn2": "bn2"}


def load_torch_weights(model: keras.Model, path: Path) -> None:
    """Load weights into a ResNet for ImageNet or MobileNet-v1. They are loaded only if all of them fit.

    Args:
        model: A model of `imagenet_resnet` or `mobilenet_v1`, changed in place.
        path: The `.safetensors` file.

    Raises:
        UserError: If the library safetensors is not installed.
        ModelError: If the file is damaged or of another model.
    """
    try:
        tensors = _read(path)
        values = dict(_match(model, tensors))
    except ModelError as error:
        raise ModelError(one_line(f"weights {path}: do not fit {model.name}: {error}", 600)) from None
    for layer, arrays in values.items():
        model.get_layer(layer).set_weights(arrays)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(f"weights {path}: needs the library safetensors; pip install 'safetensors>=0.5'") from None
    try:
        return dict(load_file(path))
    except Exception as error:  # its own errors, and those of numpy for what its header claims
        raise ModelError(f"it cannot be read ({one_line(error)}); expected float32 or float16 tensors") from None


def _match(model: keras.Model, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, list[np.ndarray]]]:
    unused = {name for name in tensors if not name.endswith("num_batches_tracked")}
    for layer in model.layers:
        if not layer.weights:
            continue
        arrays = []
        module = _module(model, layer.name)
        for weight, (name, transpose) in zip(layer.weights, _parameters(layer), strict=True):
            key = f"{module}.{name}"
            if key not in tensors:
                raise ModelError(f"{key} is missing in it; expected the names of torchvision or timm")
            array = tensors[key]
            if transpose and array.ndim == len(transpose):
                array = np.transpose(array, transpose)
            if array.shape != tuple(weight.shape):
                raise ModelError(f"{key} is {list(array.shape)} there and {list(weight.shape)} here")
            arrays.append(array)
            unused.discard(key)
        yield layer.name, arrays
    if unused:
        raise ModelError(f"it has {min(unused)}, which is not in the model; give a file of the same model and depth")


def _parameters(layer: keras.layers.Layer) -> list[tuple[str, tuple[int, ...] | None]]:
    """Return PyTorch's name of each weight of a layer, in Keras' order, and the transposition to Keras' axes."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return [(name, None) for name in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(layer, keras.layers.Dense):
        return [("weight", (1, 0)), ("bias", None)]
    # OIHW -> HWIO; a depthwise kernel is [channels, 1, H, W] -> [H, W, channels, 1].
    return [("weight", (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0))]


def _module(model: keras.Model, layer: str) -> str:
    if model.name == "mobilenet_v1":
        found = re.fullmatch(r"block(\d+)_(\w+)", layer)
        if found:
            stage, index = _MOBILENET_STAGES[int(found[1]) - 1]
            return f"blocks.{stage}.{index}.{_MOBILENET_LAYERS[found[2]]}"
        return {"stem": "conv_stem", "stem_bn": "bn1", "logits": "classifier"}[layer]
    for pattern, module in _RESNET:
        found = re.fullmatch(pattern, layer)
        if found:
            parts: list[Any] = list(found.groups())
            parts[1:2] = [int(part) - 1 for part in parts[1:2]]
            return module.format(*parts)
    raise ModelError(f"{layer} has no name in torchvision; expected an ImageNet ResNet or mobilenet_v1")
