import resrep_dist
from resrep_dist import merging
from resrep_dist.config import ModelConfig
from resrep_dist.errors import CertificateError, ModelError
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.merging import folding, surgery
from resrep_dist.merging.certificate import logits
from resrep_dist.models.building import build_model
from resrep_dist.pruning.deadness import dead_channels
from tests import tensor_float_32
from tests.networks import random_source, randomise, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


def with_dead_rows(model, share=0.5, exclude=()):
    """A model with compactors, random everywhere, of which `share` of the rows are masked and zero."""
    randomise(model)
    graph = trace(model, exclude)
    pruned = insert_compactors(model, graph)
    randomise(pruned, seed=1)
    random = np.random.default_rng(2)
    for compactor in compactors_of(pruned, graph):
        mask = random.uniform(size=compactor.mask.shape) >= share
        mask[0] = True
        compactor.mask.assign(mask.astype(np.float32))
        compactor.kernel.assign(compactor.kernel.numpy() * mask)
    return pruned, graph


def with_bias_and_flatten():
    layers = keras.layers
    x = inputs = keras.Input([16, 16, 3])
    x = layers.LeakyReLU()(layers.Conv2D(6, 3, 2, name="a")(x))
    x = layers.AveragePooling2D()(layers.ELU()(layers.Conv2D(5, 3, name="b")(x)))
    x = layers.Dense(10, activation="softmax", name="dense")(layers.Flatten()(x))
    return keras.Model(inputs, x)


MODELS = {
    "small": small_network,
    "bias_flatten_softmax": with_bias_and_flatten,
    "resnet20": lambda: build_model(ModelConfig("resnet20", 10, 16)),
    "resnet18": lambda: build_model(ModelConfig("resnet18", 10, 32)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_slim_model_gives_the_same_outputs_and_has_the_counted_size(name):
    model, graph = with_dead_rows(MODELS[name]())
    images = random_source(64, model.input_shape[1]).images
    slim, certificate = merging.merge(model, graph, images, tolerance=1e-5)
    assert certificate.argmax_agreement == 1.0 and certificate.num_images == 64
    assert not any("compactor" in layer.name for layer in slim.layers)
    widths = [certificate.channels[group.name]["kept"] for group in graph.groups]
    expected = [int(model.get_layer(g.layers[0].compactor).mask.numpy().sum()) for g in graph.groups]
    assert widths == expected and widths != graph.widths
    slim_graph = trace(slim)
    assert slim_graph.macs.total(slim_graph.widths) == graph.macs.total(widths)


def test_without_dead_rows_nothing_is_deleted():
    model, graph = with_dead_rows(small_network(), share=0.0)
    slim, certificate = merging.merge(model, graph, random_source(32).images)
    assert all(entry["kept"] == entry["original"] for entry in certificate.channels.values())


def test_a_masked_row_that_is_alive_is_kept():
    model, graph = with_dead_rows(small_network())
    compactor = compactors_of(model, graph)[0]
    row = int(np.flatnonzero(compactor.mask.numpy() == 0)[0])
    kernel = compactor.kernel.numpy()
    kernel[..., row] = 1e-3
    compactor.kernel.assign(kernel)
    assert not dead_channels(model, graph)[0][row]
    norm = float(np.linalg.norm(kernel[0, 0, :, row]))
    assert dead_channels(model, graph, dead_row_norm=1.01 * norm)[0][row]


def test_kerassurgeon_deletes_the_channels(monkeypatch):
    model, graph = with_dead_rows(small_network())
    jobs = []
    surgeon = surgery._kerassurgeon().Surgeon
    add_job = surgeon.add_job
    monkeypatch.setattr(
        surgeon, "add_job", lambda self, job, layer, **k: (jobs.append(layer.name), add_job(self, job, layer, **k))[1]
    )
    merging.merge(model, graph, random_source(32).images)
    assert jobs == [layer.name for layer in graph.layers]


def test_a_model_that_differs_is_refused(monkeypatch):
    model, graph = with_dead_rows(small_network())
    fold = merging.fold_arrays
    monkeypatch.setattr(folding, "fold_arrays", lambda *arrays: (fold(*arrays)[0], fold(*arrays)[1] + 0.1))
    with pytest.raises(CertificateError, match="it is not written"):
        merging.merge(model, graph, random_source(32).images)


def test_a_difference_that_is_not_a_number_is_refused():
    certificate = merging.Certificate(256, float("nan"), float("nan"), 0.1, {})
    with pytest.raises(CertificateError):
        merging.check_certificate(certificate, 1e-4)


def test_a_single_convolution_with_its_batch_norm_and_compactor():
    layers = [
        keras.layers.Conv2D(6, 3, 2, "same"), keras.layers.BatchNormalization(), resrep_dist.Compactor(4),
    ]  # fmt: skip
    model = keras.Sequential([keras.Input([9, 9, 3]), *layers])
    randomise(model)
    images = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)
    merged = resrep_dist.merge_convolution(layers[0], layers[2], layers[1])
    np.testing.assert_allclose(merged(images), model(images), atol=1e-5)
    layers[0].activation = keras.activations.relu
    with pytest.raises(ModelError, match="with an activation in it"):
        resrep_dist.merge_convolution(layers[0], layers[2])


def test_a_model_in_16_bits_is_merged_in_float32():
    model, graph = with_dead_rows(small_network())
    half = with_precision(model, "mixed_float16")
    images = random_source(256).images
    slim, certificate = resrep_dist.merge(half, graph, images)
    assert certificate.max_relative_difference < 1e-5
    assert {layer.compute_dtype for layer in slim.layers} == {"float32"}


def test_on_a_gpu_with_tf32_the_comparison_is_in_full_float32(monkeypatch):
    model, graph = with_dead_rows(MODELS["resnet20"]())
    images = random_source(64, 16).images
    slim, certificate = merging.merge(model, graph, images)
    tensor_float_32.emulate(monkeypatch)
    difference = np.abs(logits(model, images) - logits(slim, images)).max()
    # More than merge.tolerance, though the models are equal.
    assert difference > 1e-4 * np.abs(logits(model, images)).max()
    received = merging.merge(model, graph, images)[1]
    assert received.max_relative_difference == certificate.max_relative_difference < 1e-5
    assert tf.config.experimental.tensor_float_32_execution_enabled()
