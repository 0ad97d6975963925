"""Rebuilds a Keras 2 model from the architecture in a Keras file, which is read as plain data.

No deserializer of Keras is called. A layer is looked up in a list of stock layers, its options are checked to be
numbers, text, or Keras' own initializers, regularizers and constraints, and then the layer is created. So no code in a
file is run.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from resrep_dist.errors import ModelError, one_line
from resrep_dist.graph.application_layers import LayerScale, StochasticDepth
from resrep_dist.layers.compactor import Compactor
from resrep_dist.models.links import FIX, call_layers, calls_of, chain, entry_name, known_reference, read_references
from resrep_dist.models.operations import operations_as_layers

from tensorflow import keras

_STOCK = """
    Activation ActivityRegularization Add AlphaDropout Average AveragePooling1D AveragePooling2D AveragePooling3D
    BatchNormalization CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose
    Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dropout ELU Flatten GaussianDropout
    GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization LayerNormalization LeakyReLU MaxPooling1D MaxPooling2D
    MaxPooling3D Maximum Minimum Multiply Normalization PReLU Permute RandomBrightness RandomContrast RandomFlip
    RandomRotation RandomTranslation RandomZoom ReLU Rescaling Reshape Resizing SeparableConv1D SeparableConv2D
    Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D Subtract ThresholdedReLU UpSampling1D UpSampling2D
    UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
""".split()
_OF_APPLICATIONS = {"LayerScale": LayerScale, "StochasticDepth": StochasticDepth}
_LAYERS = {
    **{name: getattr(keras.layers, name) for name in _STOCK},
    **_OF_APPLICATIONS,
    # In `.h5` and in `.keras` files.
    "resrep_dist>Compactor": Compactor,
    "Compactor": Compactor,
}
_ACTIVATIONS = """
    elu exponential gelu leaky_relu linear log_softmax mish relu relu6 selu sigmoid silu softmax softplus softsign
    swish tanh
""".split()
_OBJECTS = {
    "initializer": keras.initializers,
    "regularizer": keras.regularizers,
    "constraint": keras.constraints,
}
_DTYPES = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")
# Options that only Keras 2 or only Keras 3 has, and that do not change the outputs.
_WITHOUT_EFFECT = {
    "renorm_momentum", "input_axes", "output_axes", "kernel_initializer", "batch_input_shape", "batch_shape",
    "rng_type",
}  # fmt: skip
# Values of options of Keras 3 that are what Keras 2 does.
_USUAL = (("groups", 1), ("data_format", "channels_last"), ("fill_mode", "constant"))
# The largest of keras.applications has 1,040.
_MAX_LAYERS = 5_000


def layers_of(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (class name, layer name) of every layer, in the order of the document.

    Args:
        document: The architecture's JSON.

    Raises:
        ModelError: If the document has anything but stock layers.
    """
    return [(entry["class_name"], entry_name(entry)) for entry in _entries(document)]


def rebuild_model(
    document: Mapping[str, Any],
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    *,
    is_keras_3: bool,
    open_size: int | None = None,
) -> keras.Model:
    """Build a functional or Sequential model with new weights. The result is functional.

    Args:
        document: The architecture's JSON.
        shapes: For each layer, by name, the shapes of its arrays in the file. A layer with weights of other shapes is
            refused before memory is allocated for them.
        is_keras_3: True if the file was written by Keras 3.
        open_size: Height and width of the images, pixels, for an input that leaves them open. None to leave them open.

    Raises:
        ModelError: If the document has anything but stock layers with plain options; the message names the layer.
    """
    entries = _entries(document)
    if len(entries) > _MAX_LAYERS:
        raise ModelError(f"it has {len(entries)} layers, expected at most {_MAX_LAYERS}")
    config = document["config"]
    inputs: Any
    outputs: Any
    if document["class_name"] == "Sequential":
        entries, inputs, outputs = chain(entries, config)
    else:
        inputs, outputs = _references_by_name(config["input_layers"]), _references_by_name(config["output_layers"])
    tensors = {(entry_name(e), 0): _make_input(e, open_size) for e in entries if e["class_name"] == "InputLayer"}
    layers = {entry_name(e): _make_layer(e, is_keras_3) for e in entries if e["class_name"] != "InputLayer"}
    if len(tensors) + len(layers) != len(entries):
        raise ModelError("two of its layers have one name; give every layer its own")
    calls = [call for entry in entries for call in calls_of(entry)]
    if len(calls) > _MAX_LAYERS:
        raise ModelError(f"its layers are called {len(calls)} times, expected at most {_MAX_LAYERS}")
    for name, layer in layers.items():
        _require_stored_shapes(layer, list(shapes.get(name, [])))
    call_layers(layers, calls, tensors)
    for layer in layers.values():
        del layer.add_weight
    ends = [
        {name: tensors[known_reference(reference, tensors)] for name, reference in side.items()}
        if isinstance(side, dict)
        else [tensors[known_reference(reference, tensors)] for reference in side]
        for side in (inputs, outputs)
    ]
    return keras.Model(*ends, name=str(config.get("name", "model")))


def _references_by_name(value: Any) -> list[tuple[str, int]] | dict[str, tuple[str, int]]:
    """Read the inputs or outputs of a model, which are a list or have names."""
    if not isinstance(value, dict):
        return read_references(value)
    return {name: read_references([reference])[0] for name, reference in value.items()}


def _entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    kind = document.get("class_name")
    if kind not in ("Functional", "Model", "Sequential") or _package(document):
        raise ModelError(f"it is a {kind}, not a functional or Sequential model; {FIX}")
    entries = operations_as_layers(document)["config"]["layers"]
    for entry in entries:
        if entry["class_name"] in ("Functional", "Model", "Sequential"):
            raise ModelError(
                f"layer {entry_name(entry)} is a model inside the model; build one flat model: call the rest on "
                "inner.output"
            )
        if entry["class_name"] != "InputLayer" and (entry["class_name"] not in _LAYERS or not _is_stock(entry)):
            raise ModelError(
                f"layer {entry_name(entry)} is a {entry['class_name']}, which is not loaded from a file; {FIX}"
            )
    return list(entries)


def _is_stock(entry: Mapping[str, Any]) -> bool:
    # Other operations of Keras 3 have the class names of layers and another module.
    if _LAYERS[entry["class_name"]] is Compactor:
        return "resrep_dist>Compactor" in (entry["class_name"], entry.get("registered_name"))
    if entry["class_name"] in _OF_APPLICATIONS:
        # Of Keras 2 or 3; a user's class of this name may compute something else.
        return str(entry.get("module") or "applications.convnext").endswith("applications.convnext")
    return entry.get("module", "keras.layers") == "keras.layers" and not _package(entry)


def _package(entry: Mapping[str, Any]) -> Any:
    registered = entry.get("registered_name")
    return registered if registered not in (None, entry.get("class_name")) else None


def _make_input(entry: Mapping[str, Any], open_size: int | None) -> Any:
    config = entry["config"]
    shape = list(config.get("batch_shape") or config["batch_input_shape"])[1:]
    if config.get("sparse") or config.get("ragged") or not all(s is None or isinstance(s, int) for s in shape):
        raise ModelError(f"layer {entry_name(entry)}: expected an input of dense images, received shape {shape}")
    if len(shape) == 3:
        shape = [open_size if size is None and axis < 2 else size for axis, size in enumerate(shape)]
    return keras.Input(shape, dtype=_dtype(entry, config.get("dtype", "float32")), name=entry_name(entry))


def _make_layer(entry: Mapping[str, Any], is_keras_3: bool) -> keras.layers.Layer:
    layer_class = _LAYERS[entry["class_name"]]
    # The signature of the class itself is, in some versions of Python, that of a `__new__` that accepts anything.
    known = {"name", "trainable", "dtype", *inspect.signature(layer_class.__init__).parameters}
    config = dict(entry["config"])
    if layer_class is keras.layers.LeakyReLU and "negative_slope" in config:
        config["alpha"] = config.pop("negative_slope")
    options = {}
    for key, value in config.items():
        if key in known:
            options[key] = _option(entry, key, value, is_keras_3)
        elif key not in _WITHOUT_EFFECT and value not in (None, False) and (key, value) not in _USUAL:
            raise ModelError(
                f"layer {entry_name(entry)}: its option {key}={value!r} is not known to Keras 2; {FIX}"[:300]
            )
    try:
        return layer_class(**options)
    except Exception as error:  # with options of unknown origin a layer may raise any error
        raise ModelError(f"layer {entry_name(entry)}: its options are refused ({one_line(error)}); {FIX}") from None


def _option(entry: Mapping[str, Any], key: str, value: Any, is_keras_3: bool) -> Any:
    if key == "dtype":
        return _dtype(entry, value)
    kind = key.rpartition("_")[2]
    if key == "activation":
        return _activation(entry, value, is_keras_3)
    if kind in _OBJECTS and isinstance(value, dict):
        return _named_object(entry, kind, value)
    # Keras would also look up the name in the classes that the program has registered.
    if kind in _OBJECTS and isinstance(value, str) and not hasattr(_OBJECTS[kind], value):
        raise ModelError(f"layer {entry_name(entry)}: its {kind} {value} is not one of Keras' own; {FIX}")
    if not _is_plain(value):
        raise ModelError(f"layer {entry_name(entry)}: its option {key} is not plain data; {FIX}")
    return value


def _activation(entry: Mapping[str, Any], value: Any, is_keras_3: bool) -> str:
    name = value.get("config") if isinstance(value, dict) and value.get("class_name") == "function" else value
    if name in (None, "linear"):
        return "linear"
    # A different function in Keras 3.
    if name == "hard_sigmoid" and not is_keras_3:
        return "hard_sigmoid"
    if name not in _ACTIVATIONS:
        raise ModelError(f"layer {entry_name(entry)}: its activation {name} is not known; {FIX}")
    return str(name)


def _named_object(entry: Mapping[str, Any], kind: str, value: Mapping[str, Any]) -> Any:
    """Create an initializer, regularizer or constraint of Keras itself."""
    module, class_name = _OBJECTS[kind], value.get("class_name")
    found = getattr(module, class_name, None) if isinstance(class_name, str) and class_name[:1].isupper() else None
    if found is None or _package(value) or value.get("module", f"keras.{kind}s") != f"keras.{kind}s":
        raise ModelError(f"layer {entry_name(entry)}: its {kind} {class_name} is not one of Keras' own; {FIX}")
    config = {k: v for k, v in (value.get("config") or {}).items() if k not in _WITHOUT_EFFECT}
    if not all(_is_plain(option) for option in config.values()):
        raise ModelError(f"layer {entry_name(entry)}: its {kind} {class_name} does not hold plain data; {FIX}")
    try:
        return found(**config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"layer {entry_name(entry)}: its {kind} is refused ({one_line(error)}); {FIX}") from None


def _dtype(entry: Mapping[str, Any], value: Any) -> str:
    if isinstance(value, dict) and value.get("class_name") in ("DTypePolicy", "Policy") and not _package(value):
        value = value.get("config", {}).get("name")
    if value not in _DTYPES:
        raise ModelError(f"layer {entry_name(entry)}: received type {value!r}, expected one of {', '.join(_DTYPES)}")
    return str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def _require_stored_shapes(layer: keras.layers.Layer, stored: list[tuple[int, ...]]) -> None:
    """Let the layer create only weights of the shapes in the file, checked before memory is allocated."""
    create, expected = layer.add_weight, iter(stored)

    def checked(name: str | None = None, shape: Any = None, **options: Any) -> Any:
        asked, found = tuple(shape or ()), next(expected, None)
        if asked != found:
            raise ModelError(f"its {name} has shape {list(asked)}, the file holds {found and list(found)}")
        return create(name, shape, **options)

    layer.add_weight = checked
