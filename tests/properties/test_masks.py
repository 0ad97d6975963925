"""What holds of every mask selection, and of every convolution that is folded."""

import dataclasses

from resrep_dist.graph.macs import MultiplyAdds
from resrep_dist.merging.folding import fold_arrays
from resrep_dist.pruning.rules import select_masks

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


@dataclasses.dataclass
class Case:
    norms: list[np.ndarray]
    macs: MultiplyAdds
    target_cost: float
    options: dict[str, int]

    def select(self, norms, max_chosen):
        return select_masks(norms, self.macs, target_cost=self.target_cost, max_chosen=max_chosen, **self.options)


@st.composite
def cases(draw):
    widths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    count = st.integers(0, 20)
    groups = range(len(widths))
    pairs = draw(st.dictionaries(st.sampled_from([(i, j) for i in groups for j in groups if i <= j]), count))
    macs = MultiplyAdds(draw(count), tuple(draw(st.integers(1, 20)) for _ in groups), pairs)
    # Few values, so that there are ties.
    values = draw(st.sampled_from([st.integers(0, 3), st.integers(1, 3), st.floats(1e-6, 2.0)]))
    norms = [np.array(draw(st.lists(values, min_size=width, max_size=width)), float) for width in widths]
    options = {"min_channels": draw(st.integers(1, 4)), "round_to": draw(st.sampled_from([1, 1, 2, 4, 8]))}
    return Case(norms, macs, draw(st.floats(0.0, 1.0)) * macs.total(widths), options)


def count_macs(macs, widths):
    """From scratch: one multiplication after the other."""
    total = macs.constant
    for cost, width in zip(macs.linear, widths, strict=True):
        total += sum(cost for _ in range(width))
    for (i, j), cost in macs.bilinear.items():
        total += sum(cost for _ in range(widths[i]) for _ in range(widths[j]))
    return total


@settings(max_examples=300)
@given(cases(), st.integers(0, 50))
def test_a_selection_keeps_its_bounds_and_is_the_plain_search(case, max_chosen):
    selection = case.select(case.norms, max_chosen)
    assert selection.num_chosen <= max_chosen
    assert selection.cost == count_macs(case.macs, selection.widths)
    for norms, mask in zip(case.norms, selection.masks, strict=True):
        num_dead = int((norms == 0).sum())
        assert mask.sum() >= max(1, min(case.options["min_channels"], len(mask) - num_dead))
        # The lowest are masked, and of equal ones the first.
        assert set(np.flatnonzero(~mask)) == set(np.argsort(norms, kind="stable")[: (~mask).sum()])
    num_masked = sum(int((~mask).sum()) for mask in selection.masks)
    # Where channels are dead a group goes down to the next multiple.
    num_down = sum(case.options["round_to"] - 1 for norms in case.norms if (norms == 0).any())
    assert num_masked <= selection.num_chosen + sum(int((norms == 0).sum()) for norms in case.norms) + num_down
    again = case.select([norms.copy() for norms in case.norms], max_chosen)
    for mask, same in zip(selection.masks, again.masks, strict=True):
        np.testing.assert_array_equal(mask, same)


@settings(max_examples=300)
@given(cases(), st.integers(0, 50))
def test_a_selection_is_the_one_that_recounts_at_every_channel(case, max_chosen):
    min_channels, round_to = case.options.values()
    full = [len(norms) for norms in case.norms]

    def rounded(chosen):
        return [min(f, -(-(f - c) // round_to) * round_to) for f, c in zip(full, chosen, strict=True)]

    chosen = [0] * len(full)
    for _, group, _ in sorted((norm, g, c) for g, norms in enumerate(case.norms) for c, norm in enumerate(norms)):
        if count_macs(case.macs, rounded(chosen)) <= case.target_cost or sum(chosen) >= max_chosen:
            break
        chosen[group] += full[group] - chosen[group] > min_channels
    selection = case.select(case.norms, max_chosen)
    assert selection.num_chosen == sum(chosen)
    for norms, mask, width in zip(case.norms, selection.masks, rounded(chosen), strict=True):
        living = int((norms != 0).sum())
        if living < width:
            below = living - living % round_to
            width = below if below >= min_channels else living
        assert mask.sum() == max(width, 1)


@settings(max_examples=200)
@given(cases(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_over_a_run_no_more_than_k_are_new_and_no_dead_channel_comes_back(case, num_per_update, random):
    norms = [array + 1.0 for array in case.norms]
    num_chosen, masks = 0, [np.ones(len(array), bool) for array in norms]
    for _ in range(12):
        selection = case.select(norms, num_chosen + num_per_update)
        assert selection.num_chosen <= num_chosen + num_per_update
        for array, before, mask in zip(norms, masks, selection.masks, strict=True):
            is_dead = array == 0
            assert not (is_dead & mask).any(), "a dead channel came back"
            assert mask.sum() >= min(case.options["min_channels"], len(mask))
            assert before.shape == mask.shape
            # Until the next update masked rows shrink, some die, and the others move a little.
            for channel in range(len(array)):
                if not mask[channel]:
                    array[channel] = 0.0 if random.random() < 0.5 else array[channel] / 2
                else:
                    array[channel] *= random.choice([0.9, 1.0, 1.1])
        num_chosen, masks = selection.num_chosen, selection.masks


numbers = st.floats(-4, 4, width=32)


@st.composite
def folds(draw):
    height, width, num_in, num_inner, num_out = (draw(st.integers(1, size)) for size in (3, 3, 4, 5, 5))
    shapes = [(height, width, num_in, num_inner), *[(num_inner,)] * 3, (num_inner, num_out)]
    patches = draw(arrays(np.float64, (3, height, width, num_in), elements=numbers))
    return patches, [draw(arrays(np.float32, shape, elements=numbers)) for shape in shapes]


@settings(max_examples=150)
@given(folds())
def test_a_folded_convolution_gives_the_same_at_every_place(fold):
    patches, (kernel, bias, scale, offset, compactor) = fold
    before = (scale.astype(float) * (np.tensordot(patches, kernel, 3) + bias) + offset) @ compactor.astype(float)
    folded_kernel, folded_bias = fold_arrays(kernel, bias, scale, offset, compactor)
    assert folded_kernel.shape == (*kernel.shape[:3], compactor.shape[1])
    np.testing.assert_allclose(np.tensordot(patches, folded_kernel, 3) + folded_bias, before, rtol=1e-9, atol=1e-9)
    dead = ~compactor.any(0)
    assert not folded_kernel[..., dead].any() and not folded_bias[dead].any()
