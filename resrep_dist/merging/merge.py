"""A trained model with compactors -> a slim plain Keras model with the same outputs, and the proof."""

from resrep_dist.graph import Graph
from resrep_dist.layers.insertion import live_graph
from resrep_dist.layers.replacement import with_precision
from resrep_dist.layers.sync_batch_norm import with_plain_batch_norm
from resrep_dist.merging.certificate import Certificate, certify, check_certificate
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.pruning.deadness import dead_channels

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
    slim = delete_channels(fold_model(model, live, dead), live, dead)
    counts = {
        group.name: {"kept": int((~channels).sum()) * group.num_parts, "original": group.num_channels}
        for group, channels in zip(graph.groups, dead, strict=True)
    }
    certificate = certify(model, slim, images, counts)
    check_certificate(certificate, tolerance)
    return slim, certificate
