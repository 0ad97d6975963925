"""Sums the multiply-adds of all calls into one polynomial in the widths of the groups."""

from collections import Counter
from collections.abc import Iterable, Sequence

from resrep_dist.graph.channels import GroupSegments
from resrep_dist.graph.kinds import UnitMacs
from resrep_dist.graph.macs import MultiplyAdds

CallCost = tuple[str, UnitMacs | None, GroupSegments, GroupSegments]
"""Name of the layer, cost of a call (None if not known), channels of its first input and of its output."""


def count_macs(widths: Sequence[int], calls: Iterable[CallCost]) -> tuple[MultiplyAdds, tuple[str, ...]]:
    """Sum the multiply-adds of all calls.

    Args:
        widths: Number of channels of each group.
        calls: All calls of layers.

    Returns:
        The multiply-adds as a function of the widths, and the names of the layers whose cost is not known.
    """
    constant, linear, bilinear = 0, [0] * len(widths), Counter[tuple[int, int]]()
    uncounted = []
    for name, cost, inputs, outputs in calls:
        if cost is None:
            uncounted.append(name)
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
    return MultiplyAdds(constant, tuple(linear), dict(bilinear)), tuple(dict.fromkeys(uncounted))


def _channels_by_group(segments: GroupSegments) -> dict[int | None, int]:
    """Return how often each group occurs; for channels that are not prunable, their number."""
    result: Counter[int | None] = Counter()
    for group, width in segments:
        result[group] += width if group is None else 1
    return dict(result)
