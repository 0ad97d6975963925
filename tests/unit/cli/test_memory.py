import resrep_dist
from resrep_dist.cli.memory import estimate_memory
from resrep_dist.layers.replacement import with_precision
from tests.networks import small_network


def small_with_compactors():
    base = small_network()
    return resrep_dist.insert_compactors(base, resrep_dist.trace(base))


def test_the_estimate_is_the_sum_by_hand():
    # Kept: the images, and of each convolution what batch norm, compactor and the layer behind the ReLU get.
    # The compactor's output is not: the ReLU's derivative is computed from its own output.
    images, maps = 16 * 16 * 3, 3 * (8 * 8 * 8 + 4 * 4 * 12 + 2 * 2 * 16)
    outputs = images + maps + 16
    kernels = 9 * (3 * 8 + 8 * 12 + 12 * 16) + 16 * 10 + 10
    trained = kernels + 2 * (8 + 12 + 16) + 8 * 8 + 12 * 12 + 16 * 16
    weights = trained + 3 * (8 + 12 + 16)  # statistics and masks
    model = small_with_compactors()
    estimate = estimate_memory(model, 32)
    assert (estimate.weights, estimate.gradients_and_momentum) == (4 * weights, 8 * trained)
    assert estimate.activations == 4 * 32 * outputs
    accumulated = estimate_memory(model, 32, num_micro_batches=3)
    assert (accumulated.gradients_and_momentum, accumulated.activations) == (12 * trained, 4 * 11 * outputs)
    averaged = estimate_memory(model, 32, has_weight_average=True)
    assert averaged.weights == 8 * weights and averaged.total == estimate.total + 4 * weights
    half = estimate_memory(with_precision(model, "mixed_bfloat16"), 32)
    # The images come in float32.
    assert half.activations == 32 * (2 * (outputs - images) + 4 * images) and half.weights == estimate.weights
