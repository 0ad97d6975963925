"""Rebuilds functional Keras models layer by layer: the one way in which this package changes models.

A rebuilt model is flat: it has the layers of inner models, and built-in activations, arithmetic on tensors and
regularizers of what comes out of them are layers of their own.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from resrep_dist.errors import ModelError, one_line
from resrep_dist.graph.activations import has_activation_to_split, has_activity_to_move, layers_at_ends
from resrep_dist.graph.application_layers import as_layer_scale, is_copied_layer_scale
from resrep_dist.graph.configurations import activity_regularization, config_of
from resrep_dist.graph.objectives import check_objective
from resrep_dist.graph.operators import operator_as_layer
from resrep_dist.graph.stored_order import remember_order
from resrep_dist.graph.tensor_functions import is_symbolic

import tensorflow as tf
from tensorflow import keras

_layers = keras.layers


@dataclasses.dataclass(frozen=True)
class CallInputs:
    """The arguments of a call of a layer."""

    args: tuple[Any, ...]
    """Positional arguments; the first has the input tensors."""
    kwargs: dict[str, Any]
    """Keyword arguments, such as `training`."""


Call = Callable[[keras.layers.Layer, keras.layers.Layer, CallInputs], Any]
"""Calls the clone of a layer, or something in its place: (layer, clone, inputs) -> outputs, see `rebuild`."""


def nodes(model: keras.Model) -> Iterator[Any]:
    """Yield the model's calls of layers, without its inputs, each after the calls that it depends on."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def flatten(model: keras.Model) -> keras.Model:
    """Return the model itself if it is flat, otherwise a flat copy with equal weights and outputs.

    Raises:
        ModelError: If the model is subclassed, not built or has a loss of its own, or a layer cannot be copied.
    """
    require_functional(model)
    check_objective(model)
    ends = layers_at_ends(model)
    is_flat = all(
        not isinstance(node.layer, keras.Model)
        and not has_activation_to_split(node.layer, ends)
        and not has_activity_to_move(node.layer, ends)
        and not is_copied_layer_scale(node.layer)
        and operator_as_layer(node) is None
        for node in nodes(model)
    )
    if is_flat and not any(map(_has_whole_pixels, model.inputs)):
        return model
    flat = rebuild(model)
    copy_weights(model, flat)
    return flat


def with_input_size(model: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Return a copy of a model, with equal weights, for images of a fixed size.

    Args:
        model: A functional model whose inputs do not fix height and width, [None, None, None, channels].
        size: Height and width of the images, pixels.

    Raises:
        ModelError: As `flatten`.
    """
    shapes = [(t.shape[0], *size, t.shape[-1]) if t.shape.rank == 4 else tuple(t.shape) for t in model.inputs]
    fixed = rebuild(model, input_shapes=shapes)
    copy_weights(model, fixed)
    return fixed


def rebuild(
    model: keras.Model,
    call: Call | None = None,
    input_shapes: Sequence[Sequence[int | None]] | None = None,
    names: Mapping[str, str] | None = None,
) -> keras.Model:
    """Rebuild a functional model, flat, from the configurations of its layers, with new weights.

    Args:
        model: The model, which is not changed.
        call: Called with a layer of `model`, its clone (not built yet, with a name that is unique in the flat model)
            and the inputs for the clone; returns the outputs that replace those of the layer. None calls the clone.
        input_shapes: Shapes of the inputs with the batch dimension; None for those of the model.
        names: New names of layers by the names that they have in a flat copy. None to change none.

    Raises:
        ModelError: If the model is subclassed, not built or has a loss of its own, or a layer cannot be copied.
    """
    require_functional(model)
    check_objective(model)
    shapes = input_shapes or [tuple(t.shape) for t in model.inputs]
    inputs = [
        keras.Input(batch_shape=shape, dtype=_dtype_of(t), name=(names or {}).get(t.node.layer.name, t.node.layer.name))
        for t, shape in zip(model.inputs, shapes, strict=True)
    ]
    rebuilding = _Rebuilding(model, call or _call_clone, names or {})
    outputs = rebuilding.run(model, inputs, None)
    # Several inputs and outputs are a list or a dict; of one alone Keras makes a tensor.
    packed = [
        tf.nest.pack_sequence_as(structure, tensors)
        for structure, tensors in ((model._nested_inputs, inputs), (model._nested_outputs, outputs))
    ]
    rebuilt = keras.Model(*packed, name=model.name)
    remember_order(rebuilt, model, rebuilding.names)
    return rebuilt


def copy_weights(source: keras.Model, target: keras.Model, skip: Collection[str] = ()) -> None:
    """Copy the weights of all layers that both models have.

    Args:
        source: Any functional model; its layers are found by the names that they have in a flat copy.
        target: A flat model, changed in place.
        skip: Names of layers that are left out.
    """
    layers = {name: layer for layer, name in _flat_names(source) if name not in skip}
    for layer in target.layers:
        if layer.name in layers and layer.weights:
            layer.set_weights(layers[layer.name].get_weights())


def require_functional(model: keras.Model) -> None:
    """Check that a model is a functional or Sequential one of Keras 2, and built.

    Raises:
        ModelError: If it is not.
    """
    if not isinstance(model, keras.Model):
        kind = type(model)
        raise ModelError(
            f"model: received a {kind.__module__}.{kind.__qualname__}, expected a Keras 2 model; "
            "resrep_dist.load_model(path) reads one from a file of Keras 2 or 3, so save a model of Keras 3 first"
        )
    if not isinstance(model, keras.Sequential) and not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"model {model.name}: expected a functional Keras model, received a subclassed one "
            f"({type(model).__name__}); build it by keras.Model(inputs, outputs)"
        )
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(f"model {model.name}: not built; give its first layer an input_shape")


class _Rebuilding:
    def __init__(self, model: keras.Model, call: Call, names: Mapping[str, str]) -> None:
        self.names = {id(layer): names.get(name, name) for layer, name in _flat_names(model)}
        self._call_back, self._ends = call, layers_at_ends(model)
        self._clones: dict[int, list[keras.layers.Layer]] = {}

    def run(self, model: keras.Model, inputs: Sequence[Any], training: bool | None) -> list[Any]:
        """Call the clones of a model's layers on `inputs`; `training` is what the model was called with."""
        tensors = {str(id(old)): _Tensor(new) for old, new in zip(model.inputs, inputs, strict=True)}
        for node in nodes(model):
            args, kwargs = node.map_arguments(tensors)
            if isinstance(node.layer, keras.Model):
                require_functional(node.layer)
                outputs = self.run(node.layer, tf.nest.flatten(args[0]), kwargs.get("training", training))
            else:
                outputs = self._call(node, args, dict(kwargs), training)
            for key, output in zip(node.flat_output_ids, tf.nest.flatten(outputs), strict=True):
                tensors[key] = _Tensor(output)
        return [tensors[str(id(output))].pop() for output in model.outputs]

    def _call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool | None) -> Any:
        layer = node.layer
        name = self.names[id(layer)]
        replacement = operator_as_layer(node)
        if replacement is not None:
            tensors = [tensor for tensor in tf.nest.flatten((args, kwargs)) if is_symbolic(tensor)]
            clone = self._in_place_of(layer, replacement, name)
            return self._call_back(layer, clone, CallInputs((tensors if len(tensors) > 1 else tensors[0],), {}))
        if training is not None and layer._expects_training_arg and kwargs.get("training") is None:
            kwargs["training"] = training
        if id(layer) not in self._clones:
            self._clones[id(layer)] = _clone(layer, name, self._ends)
        clone, *behind = self._clones[id(layer)]
        outputs = self._call_back(layer, clone, CallInputs(args, kwargs))
        for split in behind:
            outputs = split(outputs)
        return outputs

    def _in_place_of(self, layer: keras.layers.Layer, replacement: keras.layers.Layer, name: str) -> keras.layers.Layer:
        """Return the layer that replaces an operator: one for all calls, such as those of an inner model's calls."""
        config = {**replacement.get_config(), "name": name}
        if id(layer) not in self._clones:
            self._clones[id(layer)] = [type(replacement).from_config(config)]
        clone = self._clones[id(layer)][0]
        if type(clone) is not type(replacement) or clone.get_config() != config:
            raise ModelError(
                f"layer {layer.name}: it is called with different numbers or shapes, which one layer cannot hold; "
                "write each call as an operation of its own, such as x + 1"
            )
        return clone


class _Tensor:
    """A tensor in the form that `node.map_arguments` expects: a list, of which it takes one item at every use.

    This one can be taken any number of times.
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    def pop(self) -> Any:
        return self._value


def _dtype_of(tensor: Any) -> Any:
    # Images come in the usual type, and Keras would round them to that of the input.
    is_usual = tensor.dtype.is_floating or _has_whole_pixels(tensor)
    return keras.backend.floatx() if is_usual else tensor.dtype


def _has_whole_pixels(tensor: Any) -> bool:
    """Return True for an input of images in whole numbers; other whole numbers, such as indices, stay as they are."""
    return tensor.dtype == tf.uint8 and tensor.shape.rank == 4


def _call_clone(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
    return clone(*inputs.args, **inputs.kwargs)


def _clone(layer: keras.layers.Layer, name: str, ends: Collection[int]) -> list[keras.layers.Layer]:
    """Return the copy of a layer, and the layers that follow it for what is split off; `ends`: `layers_at_ends`."""
    behind: list[keras.layers.Layer] = []
    if is_copied_layer_scale(layer):
        return [as_layer_scale(layer, name)]
    try:
        config = {**config_of(layer), "name": name}
        if has_activation_to_split(layer, ends):
            config["activation"] = "linear"
            behind.append(_layers.Activation(layer.activation, name=f"{name}_activation"))
        if has_activity_to_move(layer, ends):
            if "activity_regularizer" in config:
                config["activity_regularizer"] = None
            behind.append(activity_regularization(layer, f"{name}_activity"))
        return [layer.__class__.from_config(config), *behind]
    except ModelError:
        raise
    # OSError: Keras looks for the source of a function and does not find it.
    except (NotImplementedError, TypeError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"layer {layer.name}: a {type(layer).__name__} cannot be copied from its configuration "
            f"({one_line(error, 120)}); give its class get_config and from_config, and write functions among its "
            "options (a lambda) as classes, such as of keras.constraints"
        ) from None


def _flat_names(model: keras.Model) -> list[tuple[keras.layers.Layer, str]]:
    """Return all layers, including those of inner models, each with a name that is unique in the flat model."""
    taken = {layer.name for layer in model.layers if not isinstance(layer, keras.Model)}
    taken |= {tensor.node.layer.name for tensor in model.inputs}
    found: dict[int, tuple[keras.layers.Layer, str]] = {}

    def visit(inner: keras.Model, prefix: str) -> None:
        for node in nodes(inner):
            layer = node.layer
            if isinstance(layer, keras.Model):
                require_functional(layer)
                visit(layer, f"{prefix}{layer.name}_")
            elif id(layer) not in found:
                name = layer.name
                while prefix and name in taken:
                    name = f"{prefix}{name}"
                taken.add(name)
                found[id(layer)] = (layer, name)

    visit(model, "")
    return list(found.values())
