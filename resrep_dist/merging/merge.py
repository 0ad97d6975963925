"""Merges a trained model with compactors into a slim plain Keras model, and compares their outputs."""

from typing import Any

from resrep_dist.graph import Graph
from resrep_dist.layers.insertion import live_graph, with_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.layers.sync_batch_norm import with_plain_batch_norm
from resrep_dist.merging.certificate import Certificate, certify, check_certificate
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.stock import with_stock_layers
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.pruning.deadness import dead_channels

from tensorflow import keras


def merge(
    model: keras.Model,
    graph: Graph,
    images: Any,
    *,
    tolerance: float = 1e-4,
    dead_row_norm: float = 0.0,
) -> tuple[keras.Model, Certificate]:
    """Fold convolutions, batch norms and compactors (section 3.2), delete dead channels, and compare the outputs.

    Args:
        model: The trained model with compactors, shrunken or not, or merged during its training. It is not changed;
            whatever its precision, it is merged and compared in float32.
        graph: Graph of the original model.
        images: Images for the comparison, float32 [N, height, width, channels]; for a model with several inputs a list
            or dict of arrays.
        tolerance: Largest accepted difference of the logits, relative to the largest absolute logit.
        dead_row_norm: Rows of a compactor with at most this norm are deleted.

    Returns:
        The slim model and the comparison.

    Raises:
        CertificateError: If the difference is larger than the tolerance.
    """
    model = with_compactors(with_precision(with_plain_batch_norm(model), "float32"), graph)
    live = live_graph(model, graph)
    dead = dead_channels(model, graph, dead_row_norm)
    slim = with_stock_layers(delete_channels(fold_model(model, live, dead), live, dead))
    counts = {
        group.name: {"kept": int((~channels).sum()) * group.num_parts, "original": group.num_channels}
        for group, channels in zip(graph.groups, dead, strict=True)
    }
    certificate = certify(model, slim, images, counts)
    check_certificate(certificate, tolerance)
    return slim, certificate
