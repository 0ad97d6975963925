"""Costs as functions of the widths: parameters against merged models, times against the table they come from."""

import dataclasses

from resrep_dist.errors import ConfigError
from resrep_dist.graph import trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import read_table
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging import merge
from resrep_dist.models.files import load_model
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.pruning.deadness import kill_channels
from resrep_dist.reporting.measurement import count_parameters
from resrep_dist.timing.steps import counted_width
from resrep_dist.timing.table import LayerTimes, Steps
from tests.networks import grouped_classifier, small_mobilenet, small_network, small_resnet
from tests.tables import pair_time, table_for

import numpy as np
import pytest


@pytest.mark.parametrize("network", [small_network, lambda: grouped_classifier(16, 10), lambda: small_resnet(16, 10),
                                     lambda: small_mobilenet(32, 10)])  # fmt: skip
def test_the_parameters_are_those_of_the_merged_model(network):
    model = network()
    graph = trace(model, residual_groups=True)
    random = np.random.default_rng(0)
    dead = [np.arange(width) < random.integers(0, width) for width in graph.widths]
    pruned = insert_compactors(model, graph)
    kill_channels(pruned, graph, dead)
    images = random.normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    slim, certificate = merge(pruned, graph, images, tolerance=1e-3)
    widths = [certificate.channels[group.name]["kept"] // group.num_parts for group in graph.groups]
    assert widths == [int((~gone).sum()) for gone in dead]
    assert graph.parameters.total(widths) == count_parameters(slim)
    narrower = [widths[0] - 1, *widths[1:]] if widths[0] > 1 else widths
    saved = graph.parameters.total(widths) - graph.parameters.total(narrower)
    assert widths[0] == 1 or graph.parameters.per_channel(widths)[0] == saved


def test_equal_layers_share_a_signature_and_others_do_not():
    graph = trace(small_resnet(16, 10))
    keys = {call.name: call.key for call in graph.calls}
    # Three stages of other widths; in the first one the layers differ only by the side that is pruned.
    assert len(set(keys.values())) == len(keys) == 6
    calls = {call.name: call for call in trace(small_mobilenet(32, 10)).calls}
    repeated = [name for name in calls if calls[name].key == calls["block7_depthwise"].key]
    assert len(repeated) > 3 and calls["block7_depthwise"].changes == (True, False)
    assert calls["block7_depthwise"].is_per_channel


def test_a_time_is_the_sum_of_the_layers_at_their_widths_and_interpolated_between():
    graph = trace(small_network())
    latency = Latency(table_for(graph, scale=2.0), graph, "costs.json")
    widths = list(graph.widths)
    sides = {call.name: call for call in graph.calls}
    assert list(sides) == ["conv0", "conv1", "conv2", "logits"]

    def expected(w):
        layers = ((3, w[0]), (w[0], w[1]), (w[1], w[2]), (w[2], 10))
        return 0.5 + 2.0 * sum(pair_time(*layer) for layer in layers)

    assert latency.total(widths) == pytest.approx(expected(widths))
    # The product of two widths is bilinear, so interpolation is exact from the narrowest measured one on.
    for narrow in ([4, 7, 9], [2, 3, 4], [7, 12, 5]):
        assert latency.total(narrow) == pytest.approx(expected(narrow))
    saved = latency.total(widths) - latency.total([widths[0] - 1, *widths[1:]])
    assert latency.per_channel(widths)[0] == pytest.approx(saved)
    assert latency.slopes(widths)[0] == pytest.approx(saved)


def test_a_time_never_grows_where_a_width_falls_whatever_was_measured():
    graph = trace(small_network())
    noise = np.random.default_rng(0)
    latency = Latency(table_for(graph, lambda i, o: pair_time(i, o) * noise.uniform(0.5, 1.5)), graph, "costs.json")
    for _ in range(200):
        widths = [int(noise.integers(2, width + 1)) for width in graph.widths]
        group = int(noise.integers(len(widths)))
        fewer = [width - (index == group) for index, width in enumerate(widths)]
        assert latency.total(fewer) <= latency.total(widths) + 1e-12
        assert min(latency.per_channel(widths)) >= -1e-12


def test_a_part_of_a_block_counts_as_a_whole_one():
    assert [counted_width(width, Steps(8, 1.0)) for width in (1, 8, 9, 16)] == [1, 8, 16, 16]
    assert [counted_width(width, Steps(8, 0.5)) for width in (8, 12, 16)] == [8, 14, 16]
    assert counted_width(5, Steps()) == 5
    graph = trace(small_network())
    table = table_for(graph)
    blocks = tuple(dataclasses.replace(layer, output_steps=Steps(4, 1.0)) for layer in table.layers)
    latency = Latency(dataclasses.replace(table, layers=blocks), graph, "costs.json")
    # As outputs of conv0 5 to 8 channels take equal time; as inputs of conv1 they do not.
    only_inputs = 0.001 * 12
    assert latency.total([6, 12, 16]) - latency.total([5, 12, 16]) == pytest.approx(only_inputs)
    assert latency.total([5, 12, 16]) - latency.total([4, 12, 16]) == pytest.approx(only_inputs + 0.001 * 3 * 4)


def test_a_width_off_the_unit_is_as_slow_as_a_wider_one_and_not_worth_choosing():
    steps = Steps(8, 1.0, 4, 2.0)
    assert [counted_width(width, steps) for width in (3, 8, 9, 12, 16)] == [3, 8, 18, 16, 16]
    graph = trace(small_network())
    table = table_for(graph)
    layers = [dataclasses.replace(layer, input_steps=Steps(8, 0.5, 4, 2.0)) for layer in table.layers]
    latency = Latency(dataclasses.replace(table, layers=tuple(layers)), graph, "costs.json")
    # conv1 has 12 channels, which are 3 blocks of 4: above one block of 8 only the full width is fast.
    assert latency.fast_widths(0, 8) == list(range(1, 9))
    assert latency.fast_widths(1, 12) == [*range(1, 9), 12]
    assert latency.fast_widths(2, 16) == [*range(1, 9), 12, 16]
    # 13 channels count as 26, by the line through 8 and 16.
    slow, full = latency.total([8, 12, 13]), latency.total([8, 12, 16])
    assert slow - full == pytest.approx(0.001 * (10 * (26 - 16) - 12 * 3))
    free = [dataclasses.replace(layer, input_steps=Steps(8, 1.0), output_steps=Steps(8, 1.0)) for layer in table.layers]
    latency = Latency(dataclasses.replace(table, layers=tuple(free)), graph, "costs.json")
    assert latency.fast_widths(2, 16) == [*range(1, 9), 16]
    assert latency.per_channel([8, 12, 16])[2] == pytest.approx(
        (latency.total([8, 12, 16]) - latency.total([8, 12, 8])) / 8
    )


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda text: text[:-20], "no JSON"),
        (lambda text: text.replace('"runtime": "onnx"', '"runtime": "torch"'), "runtime: received 'torch', expected"),
        (lambda text: text.replace('"runtime": "onnx"', '"runtime": "tflite"'), "it is of another one"),
        (lambda text: text.replace("0.01,", "-0.01,", 1), "received -0.01, expected greater than"),
        (lambda text: text.replace('"base_ms": ', '"base_ms": -'), "base_ms: received -"),
        (lambda text: text.replace('"constant_ms": 0.5', '"constant_ms": null'), "received None, expected number"),
        (lambda text: text.replace('"scale": 1.0,', ""), "scale: missing"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format: received 2, expected less than or equal"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(tmp_path, damage, expected):
    path = tmp_path / "costs.json"
    table_for(trace(small_network())).write(path)
    table, checksum = read_table(path)
    assert table == table_for(trace(small_network())) and len(checksum) == 64
    path.write_text(damage(path.read_text()))
    with pytest.raises(ConfigError) as refused:
        read_table(path)
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert "resrep measure" in str(refused.value) and refused.value.exit_code == 2


def test_a_table_with_holes_or_of_another_model_is_refused(tmp_path):
    graph = trace(small_network())
    with pytest.raises(ValueError, match="the table has holes"):
        LayerTimes(("a",), "{}", (1, 2), (4,), ((1.0,),), ((0.0,), (0.0,)))
    with pytest.raises(ValueError, match="expected rising numbers"):
        LayerTimes(("a",), "{}", (2, 1), (4,), ((1.0,), (1.0,)), ((0.0,), (0.0,)))
    with pytest.raises(ConfigError, match="of another model .small., .* no times for 3 of 4 layers, such as conv0"):
        Latency(table_for(trace(small_network(image_size=24))), graph, "costs.json")
    with pytest.raises(ConfigError, match="of other settings of what is pruned: it has no times for 2 of 4 layers"):
        Latency(table_for(trace(small_network(), exclude=["conv1"])), graph, "costs.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="--output .* cannot be written"):
        table_for(graph).write(tmp_path)


def test_a_table_of_another_depth_of_the_same_family_is_refused():
    """All of its layers are those of the other model: only how many there are of each tells them apart."""
    graphs = [trace(cifar_resnet(depth, 16, 10), residual_groups=True) for depth in (20, 32)]
    small, deep = ([call.key for call in graph.calls] for graph in graphs)
    assert set(small) == set(deep) and len(small) < len(deep)
    for own, other in (graphs, graphs[::-1]):
        table = table_for(own, model="cifar")
        assert Latency(table, own, "costs.json").total(own.widths) == pytest.approx(table.base_ms)
        number, expected = (sum(call.key == table.layers[1].key for call in graph.calls) for graph in (own, other))
        name = table.layers[1].names[0]
        with pytest.raises(ConfigError, match=rf"of another model .cifar., .* it has the times of {number} layers like "
                                              rf"{name}, expected those of {expected}; write one"):  # fmt: skip
            Latency(table, other, "costs.json")
    # The layers of a model that is pruned elsewhere too, of which this one has all.
    excluded = trace(cifar_resnet(20, 16, 10), exclude=["stage1_block1_conv1"])
    with pytest.raises(ConfigError, match="or of other settings of what is pruned: it has the times of 3 layers like"):
        Latency(table_for(trace(cifar_resnet(20, 16, 10))), excluded, "costs.json")


def test_a_table_is_that_of_the_model_on_disk_whatever_its_layers_are_called(tmp_path):
    model = small_resnet(16, 10)
    model.save(tmp_path / "model.h5")
    graph, again = (trace(each, residual_groups=True) for each in (model, load_model(tmp_path / "model.h5")))
    table = table_for(graph)
    renamed = [dataclasses.replace(layer, names=tuple(f"of_{name}" for name in layer.names)) for layer in table.layers]
    latency = Latency(dataclasses.replace(table, layers=tuple(renamed)), again, "costs.json")
    assert latency.total(graph.widths) == pytest.approx(table.base_ms)
