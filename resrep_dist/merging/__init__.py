"""A trained model with compactors -> a slim plain Keras model with the same outputs, and the proof."""

from resrep_dist.compactor import is_dead, live_graph
from resrep_dist.graph import Graph
from resrep_dist.layer_replacement import with_precision
from resrep_dist.merging.certificate import Certificate as Certificate
from resrep_dist.merging.certificate import certify as certify
from resrep_dist.merging.certificate import check_certificate as check_certificate
from resrep_dist.merging.certificate import logits as logits
from resrep_dist.merging.folding import fold_arrays as fold_arrays
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.folding import merge_convolution as merge_convolution
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.sync_batch_norm import with_plain_batch_norm

import numpy as np
from tensorflow import keras


def merge(
    model: keras.Model,
    graph: Graph,
    images: np.ndarray,
    *,
    tolerance: float = 1e-4,
    dead_row_norm: float = 0.0,
) -> tuple[keras.Model, Certificate]:
    """Fold conv + batch norm + compactor (section 3.2), delete dead channels, compare the outputs.

    Args:
        model: with the graph's compactors in it, shrunken or not; whatever it was trained in, it is merged and
            compared in float32.
        graph: of the original model.
        images: what the models are compared on, [N, height, width, channels].
        tolerance: largest difference of the logits that is accepted, relative to the largest logit.
        dead_row_norm: rows of at most this norm are deleted.

    Raises:
        CertificateError: when the slim model differs by more.
    """
    model = with_precision(with_plain_batch_norm(model), "float32")
    live = live_graph(model, graph)
    dead = dead_channels(model, graph, dead_row_norm)
    masks = [np.isin(np.arange(group.width), dead[group.name]) for group in live.groups]
    slim = delete_channels(fold_model(model, live, masks), live, masks)
    counts = {
        group.name: {"kept": int((~mask).sum()) * group.num_parts, "original": group.num_channels}
        for group, mask in zip(graph.groups, masks, strict=True)
    }
    certificate = certify(model, slim, images, counts)
    check_certificate(certificate, tolerance)
    return slim, certificate


def dead_channels(model: keras.Model, graph: Graph, dead_row_norm: float = 0.0) -> dict[str, list[int]]:
    """For each group the masked ones of the model's channels whose rows all have at most the norm `dead_row_norm`."""
    result = {}
    for group in graph.groups:
        compactors = [model.get_layer(layer.compactor) for layer in group.layers]
        norms = [np.linalg.norm(compactor.matrix(), axis=0) for compactor in compactors]
        dead = is_dead(norms, compactors[0].mask.numpy(), group.num_parts, dead_row_norm)
        result[group.name] = np.flatnonzero(dead).tolist()
    return result
