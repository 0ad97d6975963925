"""Sums the multiply-adds of all calls, and the parameters of all layers, into polynomials in the groups' widths."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from resrep_dist.graph.costs import CallCost
from resrep_dist.graph.kinds import UnitMacs
from resrep_dist.graph.macs import MultiplyAdds, Parameters
from resrep_dist.timing.calls import GroupSegments


def count_macs(widths: Sequence[int], calls: Iterable[CallCost]) -> tuple[MultiplyAdds, tuple[str, ...]]:
    """Sum the multiply-adds of all calls.

    Args:
        widths: Number of channels of each group.
        calls: All calls of layers.

    Returns:
        The multiply-adds as a function of the widths, and the names of the layers whose cost is not known.
    """
    costs = list(calls)
    uncounted = tuple(dict.fromkeys(name for name, cost, _, _ in costs if cost is None))
    return MultiplyAdds(*_polynomial(len(widths), costs), tuple(costs)), uncounted


def count_parameters_by_width(widths: Sequence[int], layers: Iterable[CallCost]) -> Parameters:
    """Sum the parameters of all layers of the merged model.

    Args:
        widths: Number of channels of each group.
        layers: Each layer once, with its parameters in place of multiply-adds; see `unit_parameters`.
    """
    costs = tuple(layers)
    return Parameters(*_polynomial(len(widths), costs), costs)


def unit_parameters(layer: Any, macs: UnitMacs | None, inputs: int, outputs: int, *, is_folded: bool) -> UnitMacs:
    """Return the parameters of a layer by its channels.

    The kernels of a layer that has multiply-adds are used once for each position, so the multiply-adds have the same
    form, with the number of positions as a factor.

    Args:
        layer: The layer.
        macs: Multiply-adds of a call; None if they are not known.
        inputs: Number of input channels.
        outputs: Number of output channels.
        is_folded: True if the layer gets its bias from the batch norm that follows.
    """
    num_weights = sum(math.prod(weight.shape) for weight in layer.weights)
    is_per_channel = outputs and num_weights % outputs == 0
    if macs is None or macs == UnitMacs():
        # A normalization or the like has some numbers for each channel.
        return UnitMacs(per_output=num_weights // outputs) if is_per_channel else UnitMacs(constant=num_weights)
    num_bias = outputs if getattr(layer, "use_bias", False) else 0
    of_call = macs.constant + macs.per_input * inputs + macs.per_output * outputs
    of_call += macs.per_pair * inputs * outputs // macs.num_groups
    positions = of_call // max(1, num_weights - num_bias)
    shares = [value // max(1, positions) for value in macs[:4]]
    has_bias = bool(num_bias) or is_folded
    return UnitMacs(shares[0], shares[1], shares[2] + has_bias, shares[3], macs.num_groups)


def _polynomial(num_groups: int, costs: Iterable[CallCost]) -> tuple[int, tuple[int, ...], dict[tuple[int, int], int]]:
    constant, linear, bilinear = 0, [0] * num_groups, Counter[tuple[int, int]]()
    for _, cost, inputs, outputs in costs:
        if cost is None:
            continue
        constant += cost.constant
        # None stands for the channels that are not prunable; segments that repeat (flattened pixels) add up.
        before, after = _channels_by_group(inputs), _channels_by_group(outputs)
        terms = [(cost.per_input * count, [group]) for group, count in before.items()]
        terms += [(cost.per_output * count, [group]) for group, count in after.items()]
        if cost.per_pair:
            pairs = [(m * n, [i, j]) for i, m in before.items() for j, n in after.items()]
            # No remainder: on both sides of a grouped convolution the channels or parts are a multiple of its groups.
            terms += [(cost.per_pair * count // cost.num_groups, of) for count, of in pairs]
        for factor, of in terms:
            groups = sorted(group for group in of if group is not None)
            if not groups:
                constant += factor
            elif len(groups) == 1:
                linear[groups[0]] += factor
            else:
                bilinear[(groups[0], groups[1])] += factor
    return constant, tuple(linear), dict(bilinear)


def _channels_by_group(segments: GroupSegments) -> dict[int | None, int]:
    """Return how often each group occurs; for channels that are not prunable, their number."""
    result: Counter[int | None] = Counter()
    for group, width in segments:
        result[group] += width if group is None else 1
    return dict(result)
