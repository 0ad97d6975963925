import dataclasses
import json
import math
import re

from resrep_dist.benchmark import benchmark_data, write_benchmark
from resrep_dist.benchmark.plan import plan, plan_step_seconds, print_plan, ring_allreduce_seconds
from resrep_dist.benchmark.replay import stages
from resrep_dist.benchmark.widths import channels_of, choose_channels, even_channels, read_log
from resrep_dist.cli.main import main
from resrep_dist.config import ShrinkConfig
from resrep_dist.errors import UserError
from resrep_dist.graph import trace
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.models.building import build_model
from resrep_dist.pruning.goals import Goal
from tests.images import write_image_folders, write_records
from tests.networks import small_config

import pytest
from rich.console import Console

SMALL = {"name": "python:tests.networks:small_classifier"}
# What starts no run takes a configuration with which none could start.
NO_WEIGHTS = ["--set", "base=null"]


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
    write_benchmark(tmp_path, {"other": {"seconds": 1}})
    config = tmp_path / "config.yaml"
    config.write_text(small_config(data={"source": "synthetic"}).to_yaml())
    arguments = ["--output", str(tmp_path), "--num-images", "64", "--num-rounds", "2", *NO_WEIGHTS]
    assert main(["benchmark", "data", str(config), *arguments]) == 0
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert document["other"] == {"seconds": 1} and document["data"]["source"] == "synthetic"
    assert "of the bare loop per core" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "benchmark.json").write_text("broken")
    with pytest.raises(UserError, match="benchmark.json: cannot be read"):
        write_benchmark(tmp_path, {"data": {}})


def test_some_arms_of_the_steps_are_measured_alone_by_name(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(small_config(model=SMALL).to_yaml())
    arguments = ["benchmark", "steps", str(path), "--output", str(tmp_path), "--num-steps", "1", "--num-rounds", "1"]
    assert main([*arguments, "--arms", "one_group,stock_keras,stock_horovod", *NO_WEIGHTS]) == 0
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(document["arms"]) == ["stock_horovod", "plain", "stock_keras", "one_group"]
    assert document["steps"]["other"] == {} and all(ratio["time"] > 0 for ratio in document["ratios"].values())
    assert document["arms"]["one_group"]["negotiated_tensors"] == 1
    assert document["ratios"]["one_group"]["reduced_bytes"] == 1 and document["ratios"]["stock_keras"]["macs"] == 1
    assert "time_to_compactors" not in capsys.readouterr().out
    assert main([*arguments, "--arms", "plain,fast"]) == 2
    assert "--arms plain,fast: expected some of stock_horovod,plain," in capsys.readouterr().err


def test_steps_are_measured_side_by_side_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    config = small_config(model=SMALL, shrink={"mode": "exact"})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert (
        main(["benchmark", "steps", str(path), "--output", str(tmp_path), "--num-steps", "2", "--num-rounds", "2"]) == 0
    )
    document = json.loads((tmp_path / "benchmark.json").read_text())
    result, arms, ratios = document["steps"], document["arms"], document["ratios"]
    assert list(arms) == [
        "stock_horovod", "plain", "compactors", "resrep", "resrep_exact", "resrep_unchecked", "slim"
    ]  # fmt: skip
    weights = build_model(config.model).trainable_weights
    # Horovod's tape sends each gradient by itself; our steps a few tensors.
    assert arms["stock_horovod"]["negotiated_tensors"] == len(weights) == 11
    assert arms["stock_horovod"]["reduced_bytes"] == arms["stock_horovod"]["gradient_bytes"]
    assert all(1 < arm["negotiated_tensors"] <= 8 for name, arm in arms.items() if name != "stock_horovod")
    assert arms["compactors"]["macs"] == arms["resrep"]["macs"] == arms["resrep_unchecked"]["macs"]
    assert ratios["resrep"]["time_to_compactors"] > 0 and ratios["resrep"]["time_to_unchecked"] > 0
    for arm in arms.values():
        assert 0 < arm["step_ms_median"] <= arm["step_ms_p95"] and arm["tracing_seconds"] > 0
        assert math.isclose(arm["images_per_second"], 32_000 / arm["step_ms_median"])
        # At least the weights and all else that a checkpoint holds.
        assert arm["peak_memory_bytes"] is None or arm["peak_memory_bytes"] > 4 * arm["parameters"]
    for figure in ("macs", "reduced_bytes"):
        values = [ratios[name][figure] for name in ("resrep", "resrep_exact", "slim")]
        assert values == sorted(values, reverse=True) and values[0] > ratios["plain"][figure] == 1.0 > values[2]
    graph = trace(build_model(config.model))
    assert arms["plain"]["macs"] == graph.macs.total(graph.widths)
    assert arms["slim"]["macs"] == graph.macs.total(result["widths_channels"]) <= 0.5 * arms["plain"]["macs"]
    # A plain step reduces every gradient and batch-norm statistic, 5 numbers for loss and counts, 12 against drift.
    model = build_model(config.model)
    assert arms["plain"]["reduced_bytes"] == 4 * (model.count_params() + 5 + 12)
    assert all(value > 0 for value in result["other"].values())
    output = capsys.readouterr().out
    # No figure of the table is cut off where the output goes into a file.
    assert "resrep_unchecked" in output and f" {arms['plain']['step_ms_p95']:.1f} " in output and "…" not in output
    assert all(f">{name}</text>" in (tmp_path / "steps.svg").read_text() for name in arms)
    ours = [arm for name, arm in arms.items() if name != "stock_horovod"]
    assert all(arm["gradient_bytes"] < arm["reduced_bytes"] for arm in ours)


def macs_goal(graph, fraction):
    return Goal("prune.target_macs_fraction", graph.macs, graph.macs.total(graph.widths), fraction)


def test_an_even_channels_is_the_widest_that_meets_the_target():
    graph = trace(build_model(small_config().model))
    total = graph.macs.total(graph.widths)
    for round_to in (1, 4):
        widths = even_channels(graph, macs_goal(graph, 0.6), round_to).widths
        assert 0.5 * total < graph.macs.total(widths) <= 0.6 * total
        assert all(width % round_to == 0 for width in widths)


def test_the_widths_of_a_run_are_those_of_its_report():
    graph = trace(build_model(small_config().model))
    kept = {group.name: 1 + index % group.width for index, group in enumerate(graph.groups)}
    assert channels_of(graph, kept).widths == list(kept.values())
    with pytest.raises(UserError, match="it is of another model, `conv9` is a group of one of them only"):
        channels_of(graph, {**kept, "conv9": 3})
    name = graph.groups[0].name
    with pytest.raises(UserError, match=f"{name} keeps 17, expected 1 to 16 channels"):
        channels_of(graph, {**kept, name: 17})


def write_log(path, rows):
    path.write_text(json.dumps({"living_channels": [{"iteration": i, "living_widths": w} for i, w in rows]}))
    return path


def test_the_widths_of_a_recorded_run_are_its_last(tmp_path):
    config = small_config(model=SMALL)
    graph = trace(build_model(config.model))
    half, narrow = (list(even_channels(graph, macs_goal(graph, fraction)).widths) for fraction in (0.7, 0.4))
    log = write_log(tmp_path / "log", [(0, graph.widths), (50, narrow), (100, half)])
    assert choose_channels(graph, config, log).widths == narrow
    assert choose_channels(graph, config) == even_channels(graph, macs_goal(graph, config.prune.target_macs_fraction))


def test_a_replay_shrinks_where_it_pays(tmp_path):
    config = small_config(model=SMALL, shrink={"min_saved_macs_fraction": 0.15})
    model = build_model(config.model)
    graph = trace(model)
    full, half, narrow = (list(even_channels(graph, macs_goal(graph, fraction)).widths) for fraction in (1.0, 0.7, 0.4))
    almost = [full[0] - 1, *full[1:]]
    # The channel that comes back at step 60 is gone for good.
    log = read_log(
        write_log(tmp_path / "log", [(0, full), (10, almost), (40, half), (60, full), (70, narrow), (100, narrow)]),
        graph,
    )
    with_compactors = insert_compactors(model, graph)
    macs = [training_macs(with_compactors, graph, KeptChannels.first_of(w)) for w in (full, half, narrow)]
    (off,) = stages(log, with_compactors, graph, config, "off")
    assert (off.num_steps, off.macs, off.channels.widths) == (100, macs[0], full)
    exact = stages(log, with_compactors, graph, config, "exact")
    assert [(s.num_steps, s.channels.widths, s.macs) for s in exact] == [
        (40, full, macs[0]), (30, half, macs[1]), (30, narrow, macs[2])
    ]  # fmt: skip
    merge = stages(log, with_compactors, graph, config, "merge")
    assert [(s.num_steps, s.channels.widths, s.macs) for s in merge] == [
        (40, full, macs[0]), (30, half, exact[1].macs), (30, narrow, graph.macs.total(narrow))
    ]  # fmt: skip
    assert [s.channels.is_merged for s in merge] == [False, False, True]
    config = dataclasses.replace(config, shrink=ShrinkConfig(min_saved_macs_fraction=0.15, min_saved_steps=8))
    by_mode = {mode: stages(log, with_compactors, graph, config, mode) for mode in ("exact", "merge")}
    assert [s.channels.widths for s in by_mode["exact"]] == [full, half]
    assert [s.channels.widths for s in by_mode["merge"]] == [full, narrow]


@pytest.mark.parametrize(
    "text, words",
    [
        ("[", "no log of widths"),
        ('{"living_channels": [{"iteration": 1}]}', "no log of widths"),
        ('{"living_channels": []}', "at least 2 records"),
        ('{"living_channels": [{"iteration": 1, "living_widths": [1]}, {"iteration": 2, "living_widths": [1]}]}',
         "at iteration 1 1 widths that are not those of this model's"),
    ],
)  # fmt: skip
def test_another_log_is_refused(tmp_path, text, words):
    (tmp_path / "log").write_text(text)
    with pytest.raises(UserError, match=words):
        read_log(tmp_path / "log", trace(build_model(small_config(model=SMALL).model)))


def test_a_replay_is_measured_by_the_command(tmp_path, capsys):
    config = small_config(model=SMALL, shrink={"min_saved_macs_fraction": 0.1})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    graph = trace(build_model(config.model))
    narrow = even_channels(graph, macs_goal(graph, 0.4)).widths
    log = write_log(tmp_path / "log", [(0, graph.widths), (50, narrow), (100, narrow)])
    arguments = [str(log), str(tmp_path / "config.yaml"), "--output", str(tmp_path), "--num-rounds", "1"]
    assert main(["benchmark", "replay", *arguments, *NO_WEIGHTS]) == 0
    result = json.loads((tmp_path / "benchmark.json").read_text())["replay"]
    macs, shrinks = result["macs_vs_plain"], result["num_shrinks"]
    assert macs["off"] > macs["exact"] > macs["merge"] > 0 and shrinks == {"off": 0, "exact": 1, "merge": 1}
    # Each layout is measured once, and every run is the sum of its halves.
    points = {(p["is_merged"], tuple(p["widths_channels"])): p for p in result["points"]}
    assert len(points) == len(result["points"]) == 3
    halves = [points[False, tuple(graph.widths)], points[True, tuple(narrow)]]
    for key in ("macs_vs_plain", "time_vs_plain", "reduced_bytes_vs_plain"):
        assert math.isclose(result[key]["merge"], sum(point[key] for point in halves) / 2)
    assert "merge" in capsys.readouterr().out
    picture = (tmp_path / "replay.svg").read_text()
    assert all(f">{mode}, whole run {result['time_vs_plain'][mode]:.3f}</text>" in picture for mode in macs)
    assert [stage["num_steps"] for stage in result["stages"]["exact"]] == [50, 50]


def test_without_a_configuration_a_replay_is_of_a_resnet50(tmp_path, capsys):
    log = write_log(tmp_path / "log", [(0, [16, 16]), (100, [8, 8])])
    assert main(["benchmark", "replay", str(log)]) == 2
    assert "not those of this model's 32 groups; give the model's own config" in capsys.readouterr().err


def test_a_ring_sends_almost_twice_the_bytes_whatever_the_number_of_ranks():
    # 1 GB at 1 GB/s: 2 (N - 1) / N seconds.
    assert ring_allreduce_seconds(1e9, 1, 1e9, 1.0) == 0.0
    assert math.isclose(ring_allreduce_seconds(1e9, 2, 1e9, 0.0), 1.0)
    assert math.isclose(ring_allreduce_seconds(1e9, 64, 1e9, 0.0), 2 * 63 / 64)
    assert math.isclose(ring_allreduce_seconds(0.0, 64, 1e9, 1e-3), 0.126)
    assert plan_step_seconds(1.0, 0.5, 0.0) == 1.5 and plan_step_seconds(1.0, 0.5, 0.4) == 1.1
    assert plan_step_seconds(1.0, 0.5, 0.6) == 1.0


ARM = {"step_ms_median": 100.0, "gradient_bytes": 800_000, "reduced_bytes": 1_000_000}
STEPS = {"model": small_config().model.name, "image_size_pixels": 16, "num_ranks": 1, "global_batch_size_images": 16}


def test_float16_halves_the_bytes_of_the_gradients_only():
    steps = {**STEPS, "arms": {"plain": ARM}}
    full, half = plan(steps, [2], bandwidth_gbit=0.008, latency_microseconds=0.0)["rows"]
    assert math.isclose(full["allreduce_ms"], 1000.0) and math.isclose(half["allreduce_ms"], 600.0)
    assert math.isclose(full["step_ms"], 1100.0) and math.isclose(full["images_per_second"], 32 / 1.1)
    assert math.isclose(full["efficiency"], 1 / 11)
    # Two messages of 1 ms, and two more for what is not a gradient.
    full, half = plan(steps, [2], bandwidth_gbit=0.008, latency_microseconds=1000.0)["rows"]
    assert math.isclose(full["allreduce_ms"], 1002.0) and math.isclose(half["allreduce_ms"], 604.0)


def test_figures_are_under_their_number_of_ranks_in_whatever_order_it_was_given(capsys):
    result = plan({**STEPS, "arms": {"plain": ARM}}, [64, 8, 8], bandwidth_gbit=0.08)
    assert [row["num_ranks"] for row in result["rows"]] == [8, 64, 8, 64]
    print_plan(Console(width=120), result)
    lines = capsys.readouterr().out.splitlines()
    headings, figures = (
        [cell.strip() for cell in re.split("[┃│]", line)[3:-1]] for line in lines if "arm" in line or "float32" in line
    )
    assert headings == ["8 ranks", "64 ranks"]
    assert figures == [f"{row['step_ms']:.1f} ({100 * row['efficiency']:.0f} %)" for row in result["rows"][:2]]


@pytest.mark.parametrize(
    "steps, more, code, words",
    [
        ({}, [], 0, "4 ranks"),
        ({"num_ranks": 2}, [], 2, "measured on 2 ranks, expected 1"),
        (
            {"model": "resnet56"},
            [],
            2,
            "measured on resnet56 at 16 px, expected the config's python:tests.networks:small_resnet at 16 px",
        ),
        ({}, ["--ranks", "4,none"], 2, "received 4,none, expected whole numbers"),
        ({}, ["--bandwidth", "0"], 2, "received 0, expected a number, 0.001 or more"),
        ({}, ["--overlap", "2"], 2, "received 2, expected a number, 0 to 1"),
    ],
)
def test_the_command_plans_from_measured_steps(tmp_path, capsys, steps, more, code, words):
    (tmp_path / "config.yaml").write_text(small_config().to_yaml())
    benchmark = tmp_path / "benchmark.json"
    benchmark.write_text(json.dumps({"steps": {**STEPS, **steps}, "arms": {"plain": ARM, "slim": ARM}}))
    options = ["--ranks", "1,4", "--bandwidth", "1", "--benchmark", str(benchmark), "--output", str(tmp_path)]
    options += [*NO_WEIGHTS, *more]
    try:
        received = main(["plan", str(tmp_path / "config.yaml"), *options])
    except SystemExit as error:
        received = error.code
    captured = capsys.readouterr()
    assert received == code and words in captured.out + captured.err
    assert ("plan" in json.loads(benchmark.read_text())) == (code == 0)
