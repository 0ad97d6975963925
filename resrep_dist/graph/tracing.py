"""Traces which channels of a functional Keras model can be pruned, which layers lose inputs, and what they cost.

Channels are prunable if they reach only layers that can lose them, and if the value that a dead channel still holds
there (zero, or the same number at every pixel of every image) can be added to the bias of the layer that loses it. All
other convolutions are refused by name with the reason.

The result is a fixed point. One trace visits the layers from the inputs to the outputs, but two facts about a layer are
known only when layers behind it have been visited:

- Whether it is a gate (squeeze-and-excitation), seen at the product. A gate gets no compactor: its channels never die.
- Into how many equal parts it must divide its channels, seen at a grouped convolution, or where its channels are
  combined with those of a layer that divides its own.

So each trace records the gates and parts that it finds, and the model is traced again with them until no trace requests
other parts. That ends: a request is always a multiple of the parts that the layer has, and divides its width.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph.channels import ChannelSets, Segments
from resrep_dist.graph.costs import CallCost
from resrep_dist.graph.counting import count_macs, count_parameters_by_width, unit_parameters
from resrep_dist.graph.kinds import Kind, OpenSizeError
from resrep_dist.graph.rebuilding import flatten, nodes
from resrep_dist.graph.signatures import weighted_call
from resrep_dist.graph.structure import Graph, Group, LayerChannels, PrunableLayer
from resrep_dist.graph.table import is_channelwise_batch_norm, kind_of
from resrep_dist.graph.weighted import Weighted
from resrep_dist.timing.calls import GroupSegments, WeightedCall

import numpy as np
import tensorflow as tf
from tensorflow import keras


def trace(model: keras.Model, exclude: Sequence[str] = (), residual_groups: bool = False) -> Graph:
    """Find the prunable channels of a functional model.

    The layers that channels can pass are in `resrep_dist/graph/table.py`.

    Args:
        model: A functional or Sequential model.
        exclude: Names of convolutions that are not pruned.
        residual_groups: True if layers whose outputs are added are pruned together, False if they are not pruned.

    Returns:
        The groups of prunable channels, the refused convolutions and the multiply-adds. Layers of inner models, and
        activations inside of layers, have the names that `insert_compactors` gives them.

    Raises:
        ModelError: If the model is subclassed or its input size is not fixed, if it has no layer of a name in
            `exclude`, or if its outputs are random in inference too.
    """
    flat = flatten(model)
    _require_repeatable(flat)
    unknown = sorted(set(exclude) - {layer.name for layer in flat.layers})
    if unknown:
        raise ModelError(f"prune.exclude: received '{unknown[0]}', expected names of convolutions of {model.name}")
    try:
        num_parts: dict[str, int] = {}
        while True:
            tracing = _Tracing(flat, exclude, ChannelSets(residual_groups, num_parts=num_parts))
            if gates := tracing.sets.possible_gates:
                tracing = _Tracing(flat, exclude, ChannelSets(residual_groups, gates, num_parts))
            requested = num_parts | tracing.sets.requested_parts
            if requested == num_parts:
                return tracing.graph()
            num_parts = requested
    except OpenSizeError:
        raise ModelError(
            f"model {model.name}: its input size is open, {tuple(flat.input_shape)}; build it with a fixed one, or "
            "give resrep_dist.with_input_size(model, (height, width))"
        ) from None


def _require_repeatable(model: keras.Model) -> None:
    """Refuse a model whose outputs are random in inference too: no slim model can be compared with it."""
    has_code = False
    for node in nodes(model):
        layer = node.layer
        is_random = isinstance(layer, keras.__internal__.layers.BaseRandomLayer)
        if is_random and node.call_kwargs.get("training") is True:
            raise _random(f"layer {layer.name}: a {type(layer).__name__} that is called with training=True")
        function = layer.get_config()["function"] if type(layer).__name__ == "TFOpLambda" else ""
        if "random" in function or "dropout" in function:
            raise _random(f"layer {layer.name}: tf.{function} draws in inference too")
        has_code = has_code or type(layer) is keras.layers.Lambda
    if has_code and all(None not in tensor.shape[1:] for tensor in model.inputs):
        inputs = [tf.ones([1, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
        first, second = (tf.nest.flatten(model(inputs, training=False)) for _ in range(2))
        # Two runs may round differently.
        pairs = [(np.asarray(one), np.asarray(other)) for one, other in zip(first, second, strict=True)]
        if not all(np.allclose(a, b, rtol=0.0, atol=1e-2 * np.max(np.abs(a)), equal_nan=True) for a, b in pairs):
            raise _random(f"model {model.name}: a Lambda layer in it draws random numbers in inference too")


def _random(what: str) -> ModelError:
    return ModelError(
        f"{what}, so the outputs are random and no slim model can be compared with them; call a layer such as "
        "keras.layers.Dropout without `training`, and build the slim model with it afterwards"
    )


class _Tracing:
    def __init__(self, model: keras.Model, exclude: Collection[str], sets: ChannelSets) -> None:
        self.sets, self._nodes = sets, list(nodes(model))
        names = [node.layer.name for node in self._nodes]
        self._shared = {name for name, count in Counter(names).items() if count > 1}
        self._kinds = [kind_of(node, node.layer.name in self._shared, exclude) for node in self._nodes]
        self._batch_norms = _batch_norms_behind(self._nodes, self._kinds, model, self._shared)
        self._segments: dict[str, Segments] = {str(id(t)): sets.fixed(t.shape[-1] or 0) for t in model.inputs}
        behind = set(self._batch_norms.values())
        for node, kind in zip(self._nodes, self._kinds, strict=True):
            inputs = self._inputs(node)
            # The compactor is inserted behind this batch norm, so dead channels are zero there.
            segments = inputs[0] if node.layer.name in behind else kind.trace(node, inputs, sets)
            if len(node.flat_output_ids) > 1:
                # Of a layer of unknown effect; its outputs can have different widths.
                self._segments |= {str(id(t)): sets.fixed(_width_of(t)) for t in tf.nest.flatten(node.outputs)}
            else:
                self._segments[node.flat_output_ids[0]] = segments
        for tensor in model.outputs:
            sets.keep(self._segments[str(id(tensor))], "its channels are an output of the model")

    def graph(self) -> Graph:
        """Return the groups and what they cost."""
        groups: list[Group] = []
        refused: dict[str, str] = {}
        index_of_root: dict[int, int] = {}
        consumers = self.sets.consumers()
        for root, variables in self._variables_by_root().items():
            producers = [producer for variable in variables if (producer := self.sets.producers[variable])]
            layers = [PrunableLayer(p.name, self._batch_norms.get(p.name), p.num_groups) for p in producers
                      if p.name not in self.sets.gates]  # fmt: skip
            convolutions = [producer.name for producer in producers if producer.is_convolution]
            reason = self.sets.reason(root)
            if reason is not None:
                refused |= dict.fromkeys(convolutions, reason)
            elif layers and convolutions:
                index_of_root[root] = len(groups)
                of_consumers = tuple(sorted(consumers.get(root, ())))
                groups.append(Group(tuple(layers), self.sets.widths[root], of_consumers, self.sets.num_parts[root]))
        channels: dict[str, LayerChannels] = {}
        costs: list[CallCost] = []
        calls: list[WeightedCall | None] = []
        for node, kind in zip(self._nodes, self._kinds, strict=True):
            inputs = tuple(self._resolved(segments, index_of_root) for segments in self._inputs(node))
            output = self._resolved(self._segments[node.flat_output_ids[0]], index_of_root)
            name = node.layer.name
            if name not in channels or not channels[name].is_in_a_group:
                channels[name] = LayerChannels(kind, inputs, output, name in self._shared)
            costs.append((name, kind.macs(node), inputs[0], output))
            calls.append(weighted_call(node, costs[-1][1], inputs[0], output))
        widths = [group.width for group in groups]
        macs, uncounted = count_macs(widths, costs)
        parameters = count_parameters_by_width(widths, self._layer_costs(groups, costs))
        known = tuple(call for call in calls if call is not None)
        return Graph(tuple(groups), refused, macs, uncounted, channels, parameters, known)

    def _layer_costs(self, groups: Sequence[Group], costs: Sequence[CallCost]) -> list[CallCost]:
        """Return each layer of the merged model once, with its parameters."""
        compacted = [layer for group in groups for layer in group.layers]
        folded = {layer.name for layer in compacted}
        seen = {layer.batch_norm for layer in compacted}
        result: list[CallCost] = []
        for node, (name, macs, inputs, output) in zip(self._nodes, costs, strict=True):
            if name not in seen:
                sizes = [sum(width for _, width in segments) for segments in (inputs, output)]
                unit = unit_parameters(node.layer, macs, *sizes, is_folded=name in folded)
                result.append((name, unit, inputs, output))
                seen.add(name)
        return result

    def _inputs(self, node: Any) -> list[Segments]:
        return [self._segments[key] for key in node.flat_input_ids]

    def _resolved(self, segments: Segments, index_of_root: dict[int, int]) -> GroupSegments:
        return tuple((index_of_root.get(self.sets.find(segment.variable)), segment.width) for segment in segments)

    def _variables_by_root(self) -> dict[int, list[int]]:
        result: dict[int, list[int]] = {}
        for variable in range(len(self.sets.producers)):
            result.setdefault(self.sets.find(variable), []).append(variable)
        return result


def _width_of(tensor: Any) -> int:
    return int(tensor.shape[-1] or 0) if tensor.shape.rank else 0


def _batch_norms_behind(
    all_nodes: list[Any], kinds: list[Kind], model: keras.Model, shared: Collection[str]
) -> dict[str, str]:
    """Return for each layer that might be pruned the batch norm that is the only layer to receive its output."""
    followers: dict[str, list[Any]] = {}
    for node in all_nodes:
        for key in node.flat_input_ids:
            followers.setdefault(key, []).append(node)
    outputs = {str(id(tensor)) for tensor in model.outputs}
    result = {}
    for node, kind in zip(all_nodes, kinds, strict=True):
        key = node.flat_output_ids[0]
        following = followers.get(key, [])
        if isinstance(kind, Weighted) and kind.own_reason is None and len(following) == 1 and key not in outputs:
            layer = following[0].layer
            if is_channelwise_batch_norm(following[0]) and layer.name not in shared:
                result[node.layer.name] = layer.name
    return result
