"""A Keras functional model -> which channels may go, who loses inputs with them, and what they cost.

Channels may go where they reach only layers that can lose them, and where what a dead channel still holds on its
way (zero, or one number at every pixel of every image) can be carried into the bias of the layer that loses it.
All others are refused by name with the reason.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph.channels import ChannelSets, GroupSegments, Segments
from resrep_dist.graph.counting import count_macs
from resrep_dist.graph.kinds import Kind, OpenSizeError
from resrep_dist.graph.rebuilding import flatten, nodes
from resrep_dist.graph.structure import Graph, Group, LayerChannels, PrunableLayer
from resrep_dist.graph.table import kind_of
from resrep_dist.graph.weighted import Weighted

from tensorflow import keras


def trace(model: keras.Model, exclude: Sequence[str] = (), residual_groups: bool = False) -> Graph:
    """Trace a functional model; `kinds.py` and `weighted.py` say which layers channels can pass.

    Args:
        exclude: convolutions to leave as they are.
        residual_groups: layers that meet in an addition are pruned together; by default they stay.

    Raises:
        ModelError: for a subclassed model, sizes left open, a name in `exclude` that the model does not have.
    """
    flat = flatten(model)
    unknown = sorted(set(exclude) - {layer.name for layer in flat.layers})
    if unknown:
        raise ModelError(f"prune.exclude: received '{unknown[0]}', expected names of convolutions of {model.name}")
    try:
        num_parts: dict[str, int] = {}
        while True:
            tracing = _Tracing(flat, exclude, ChannelSets(residual_groups, num_parts=num_parts))
            if gates := tracing.sets.possible_gates:
                # Known only at the end, but it matters from the start: a gate has no compactor, it never dies itself.
                tracing = _Tracing(flat, exclude, ChannelSets(residual_groups, gates, num_parts))
            requested = num_parts | tracing.sets.requested_parts
            if requested == num_parts:
                return tracing.graph()
            # So are parts: a producer must divide its channels as a grouped convolution far behind it does.
            num_parts = requested
    except OpenSizeError:
        raise ModelError(
            f"model {model.name}: its input size is open, {tuple(flat.input_shape)}; build it with a fixed one, or "
            "give resrep_dist.with_input_size(model, (height, width))"
        ) from None


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
            # The compactor stands behind this batch norm.
            segments = inputs[0] if node.layer.name in behind else kind.trace(node, inputs, sets)
            self._segments |= dict.fromkeys(node.flat_output_ids, segments)
        for tensor in model.outputs:
            sets.keep(self._segments[str(id(tensor))], "its channels are an output of the model")

    def graph(self) -> Graph:
        """The groups and what they cost."""
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
        costs = []
        for node, kind in zip(self._nodes, self._kinds, strict=True):
            inputs = tuple(self._resolved(segments, index_of_root) for segments in self._inputs(node))
            output = self._resolved(self._segments[node.flat_output_ids[0]], index_of_root)
            name = node.layer.name
            if name not in channels or not channels[name].is_in_a_group:
                channels[name] = LayerChannels(kind, inputs, output, name in self._shared)
            costs.append((name, kind.macs(node), inputs[0], output))
        macs, uncounted = count_macs([group.width for group in groups], costs)
        return Graph(tuple(groups), refused, macs, uncounted, channels)

    def _inputs(self, node: Any) -> list[Segments]:
        return [self._segments[key] for key in node.flat_input_ids]

    def _resolved(self, segments: Segments, index_of_root: dict[int, int]) -> GroupSegments:
        return tuple((index_of_root.get(self.sets.find(segment.variable)), segment.width) for segment in segments)

    def _variables_by_root(self) -> dict[int, list[int]]:
        result: dict[int, list[int]] = {}
        for variable in range(len(self.sets.producers)):
            result.setdefault(self.sets.find(variable), []).append(variable)
        return result


def _batch_norms_behind(
    all_nodes: list[Any], kinds: list[Kind], model: keras.Model, shared: Collection[str]
) -> dict[str, str]:
    """For each layer that might be pruned the batch norm that alone receives its output."""
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
            if isinstance(layer, keras.layers.BatchNormalization) and layer.name not in shared:
                result[node.layer.name] = layer.name
    return result
