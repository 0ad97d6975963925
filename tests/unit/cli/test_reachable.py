"""What `resrep inspect` says of targets before any training."""

import re

from resrep_dist.cli.main import main
from resrep_dist.graph import trace
from resrep_dist.graph.latency import Latency
from tests.networks import small_config, small_network, small_resnet
from tests.tables import table_for, write_table

import pytest

SMALL = {"name": "python:tests.networks:small_classifier"}


@pytest.fixture
def inspected(tmp_path, capsys, monkeypatch):
    """Writes a configuration, and returns the exit code and what is printed at 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments, **sections):
        path = tmp_path / "config.yaml"
        path.write_text(small_config(model=SMALL, **sections).to_yaml())
        code = main(["inspect", str(path), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def rows_of(printed, title):
    """The cells of a table below its title."""
    after = printed.partition(title)[2].partition("└")[0]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in after.splitlines() if line[:1] == "│"]


def test_targets_are_shown_in_all_measures_down_to_the_lowest(tmp_path, inspected):
    graph = trace(small_network())
    costs = write_table(graph, tmp_path / "costs.json")
    code, printed = inspected("--costs", costs)
    assert code == 0 and max(len(line) for line in printed.splitlines() if line[:1] in "┏┃│") <= 100
    rows = rows_of(printed, "What a target of multiply-adds would leave")
    assert "50.0 % (the target)" in [row[0] for row in rows] and rows[-1][0].endswith("(lowest)")
    targets = [float(row[0].split()[0]) for row in rows]
    left = [list(map(float, row[1:])) for row in rows]
    assert targets == sorted(targets, reverse=True)
    # Each target is met, nearly used up, and every measure falls with it.
    for target, (macs, *_) in zip(targets, left, strict=True):
        assert target - 6 < macs <= target + 0.05
    assert all(column == tuple(sorted(column, reverse=True)) for column in zip(*left, strict=True))
    narrow = [1, 1, 1]
    expected = graph.parameters.total(narrow) / graph.parameters.total(graph.widths)
    latency = Latency(table_for(graph), graph, costs)
    assert left[-1][1:3] == pytest.approx([100 * expected, 100 * latency.total(narrow) / latency.base_ms], abs=0.06)
    assert "takes equal shares of all groups" in " ".join(printed.split())


def test_the_layers_that_hold_the_rest_add_up(inspected):
    _, printed = inspected()
    *rows, total = rows_of(printed, "Layers that hold the rest")
    assert [row[0] for row in rows] and {row[0] for row in rows} == {"conv0", "conv1", "conv2", "logits"}
    for column in range(1, 4):
        assert sum(float(row[column]) for row in rows) == pytest.approx(float(total[column]), abs=0.3)
    assert float(total[1]) == 100.0 and float(total[2]) <= 50.0
    held = [float(row[2]) for row in rows]
    assert held == sorted(held, reverse=True)


def test_layers_that_stay_whole_are_named(inspected):
    graph = trace(small_network(), exclude=["conv0"])
    _, printed = inspected("--set", "prune.exclude=[conv0]", "--set", "prune.target_macs_fraction=0.8")
    share = graph.macs.by_layer(graph.widths)["conv0"] / graph.macs.total(graph.widths)
    expected = f"Pruning does not change 1 of these 4 layers, such as conv0; they hold {100 * share:.1f} %."
    assert expected in " ".join(printed.split())


def test_a_target_of_latency_has_its_own_table(tmp_path, inspected):
    costs = write_table(trace(small_network()), tmp_path / "costs.json")
    target = {"target": {"latency_fraction": 0.7, "costs": costs}, "target_macs_fraction": None}
    code, printed = inspected(prune=target)
    rows = rows_of(printed, "What a target of latency would leave")
    assert code == 0 and "70.0 % (the target)" in [row[0] for row in rows]
    assert "all that belongs to no layer here" in printed
    code, printed = inspected("--costs", costs, prune=target)
    assert code == 2 and re.search(r"--costs .* received beside a target of latency", printed)


def test_the_costs_of_all_layers_are_the_cost_of_the_model(tmp_path):
    graph = trace(small_resnet(16, 10), residual_groups=True)
    for widths in (graph.widths, [width // 2 for width in graph.widths]):
        for cost in (graph.macs, graph.parameters):
            assert sum(cost.by_layer(widths).values()) == cost.total(widths)
        latency = Latency(table_for(graph, scale=2.0, constant_ms=0.25), graph, "costs.json")
        assert sum(latency.by_layer(widths).values()) + 0.25 == pytest.approx(latency.total(widths))
