import json
import math

from resrep_dist.benchmark import benchmark_data, write_benchmark
from resrep_dist.benchmark.steps import even_layout, layout_of
from resrep_dist.cli import main
from resrep_dist.errors import UserError
from resrep_dist.graph import trace
from resrep_dist.models import build_model
from tests.images import write_image_folders, write_records
from tests.networks import small_config

import pytest


@pytest.mark.parametrize("source", ["imagefolder", "tfrecord"])
def test_the_pipeline_is_measured_next_to_a_bare_loop(tmp_path, source):
    write = {"imagefolder": write_image_folders, "tfrecord": write_records}[source]
    data = {"source": source, "global_batch_size": 10, "path": str(write(tmp_path))}
    config = small_config(data=data, model={"image_size": 16})
    result = benchmark_data(config, num_images=45, num_rounds=3)
    assert result["images_per_round"] == 40 and len(result["ratio_per_core_of_rounds"]) == 3
    for loop in ("pipeline", "bare_decode_loop"):
        assert all(figure > 0 for figure in result[loop].values())
    assert (
        min(result["ratio_per_core_of_rounds"]) <= result["ratio_per_core"] <= max(result["ratio_per_core_of_rounds"])
    )


def test_the_command_writes_its_section_and_keeps_the_others(tmp_path, capsys):
    write_benchmark(tmp_path, "other", {"seconds": 1})
    config = tmp_path / "config.yaml"
    config.write_text(small_config(data={"source": "synthetic"}).to_yaml())
    arguments = ["--output", str(tmp_path), "--num-images", "64", "--num-rounds", "2"]
    assert main(["benchmark", "data", str(config), *arguments]) == 0
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert document["other"] == {"seconds": 1} and document["data"]["source"] == "synthetic"
    assert "of the bare loop per core" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "benchmark.json").write_text("broken")
    with pytest.raises(UserError, match="benchmark.json: cannot be read"):
        write_benchmark(tmp_path, "data", {})


def test_steps_are_measured_side_by_side_by_the_command(tmp_path, capsys):
    config = small_config(model={"name": "python:tests.networks:small_classifier"}, shrink={"mode": "refold"})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert (
        main(["benchmark", "steps", str(path), "--output", str(tmp_path), "--num-steps", "2", "--num-rounds", "2"]) == 0
    )
    result = json.loads((tmp_path / "benchmark.json").read_text())["steps"]
    arms, ratios = result["arms"], result["ratios"]
    assert list(arms) == ["plain", "resrep", "resrep_exact", "resrep_refold", "slim"]
    for arm in arms.values():
        assert 0 < arm["step_ms_median"] <= arm["step_ms_p95"] and arm["tracing_seconds"] > 0
        assert math.isclose(arm["images_per_second"], 32_000 / arm["step_ms_median"])
        # At least the weights and their velocities.
        assert arm["peak_memory_bytes"] is None or arm["peak_memory_bytes"] > 8 * arm["parameters"]
    for figure in ("macs", "reduced_bytes"):
        values = [ratios[name][figure] for name in ("resrep", "resrep_exact", "resrep_refold", "slim")]
        assert values == sorted(values, reverse=True) and values[0] > ratios["plain"][figure] == 1.0 > values[3]
    graph = trace(build_model(config.model))
    assert arms["plain"]["macs"] == graph.macs.total(graph.widths)
    assert arms["slim"]["macs"] == graph.macs.total(result["widths_channels"]) <= 0.5 * arms["plain"]["macs"]
    # A plain step reduces every gradient and batch-norm statistic, 5 numbers for loss and counts, 12 against drift.
    model = build_model(config.model)
    assert arms["plain"]["reduced_bytes"] == 4 * (model.count_params() + 5 + 12)
    assert all(value > 0 for value in result["other"].values())
    assert "resrep_refold" in capsys.readouterr().out


def test_an_even_layout_is_the_widest_that_meets_the_target():
    graph = trace(build_model(small_config().model))
    total = graph.macs.total(graph.widths)
    for round_to in (1, 4):
        widths = even_layout(graph, 0.6, round_to).widths
        assert 0.5 * total < graph.macs.total(widths) <= 0.6 * total
        assert all(width % round_to == 0 for width in widths)


def test_the_widths_of_a_run_are_those_of_its_report():
    graph = trace(build_model(small_config().model))
    kept = {group.name: 1 + index % group.width for index, group in enumerate(graph.groups)}
    assert layout_of(graph, kept).widths == list(kept.values())
    with pytest.raises(UserError, match="it is of another model, `conv9` is a group of one of them only"):
        layout_of(graph, {**kept, "conv9": 3})
    name = graph.groups[0].name
    with pytest.raises(UserError, match=f"{name} keeps 17, expected 1 to 16 channels"):
        layout_of(graph, {**kept, name: 17})
