"""Aimed by latency against aimed by multiply-adds: `python -m tests.quality.aimed --data-path fashion_mnist.npz`.

A ResNet-20 on Fashion-MNIST is pruned from the same base, in the same number of steps and with the same settings, to
0.6 of its latency in ONNX Runtime by a table of measured times, to 0.6 of its multiply-adds, and to the multiply-adds
with which equal shares of all layers would have 0.6 of the latency. Then base and slim models are timed in turn, batch
1, and validated. The table is measured first, unless `costs.json` lies in `--folder`.

`results.json` of `--folder` keeps what is done, so that the command goes on where it was stopped; `--measure-again`
times the models again that are there. `aimed.md` of `--folder` has the table that is printed. The file of the data is
made by `python -m tests.quality.fashion_mnist`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.measure import measure_costs
from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph, trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import LatencyTable, read_table
from resrep_dist.timing.rounds import time_in_turn
from resrep_dist.timing.runtimes import open_file
from tests.networks import sources_of
from tests.quality.peers import Work, base_of, measured, prune_here

import numpy as np
import tensorflow as tf

CONFIG = Path(__file__).parent / "fashion_mnist.yaml"
FRACTION = 0.6
WAYS = ("latency", "multiply-adds", "fewer multiply-adds")
SETTINGS = [
    "prune.max_extension_epochs=0",
    "prune.rule=radial",
    "prune.kept_lasso_strength=1e-4",
    "shrink.mode=merge",
]
SPREAD_BOUND, MAX_ROUNDS = 0.01, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="settings of all, for a trial")
    parser.add_argument("--folder", type=Path, default=Path("build/aimed"))
    parser.add_argument("--bases", type=Path, help="folder of base-fashion_mnist-resnet20-seed*.h5 (--folder)")
    parser.add_argument("--measure-again", action="store_true", help="time the models that are there again")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {"overrides": options.overrides, "models": {}}
    if found["overrides"] != options.overrides:
        parser.error(f"{path} holds results of other settings, {found['overrides']}; use another --folder")
    tf.config.experimental.enable_op_determinism()
    table = table_of(options)
    for seed in options.seeds:
        of_seed = found["models"].setdefault(str(seed), {})
        if prune(options, table, seed, of_seed, lambda: path.write_text(json.dumps(found, indent=1))):
            measure(options, of_seed)
            path.write_text(json.dumps(found, indent=1))
        report(found["models"], table, options.folder / "aimed.md")


def table_of(options: argparse.Namespace) -> LatencyTable:
    """The table of times, which is measured unless it is there."""
    path = options.folder / "costs.json"
    if not path.exists():
        config = load_config(CONFIG, [*SETTINGS, *options.overrides])
        measure_costs(config, "onnx", options.threads, 1, lambda *_: None).write(path)
    return read_table(path)[0]


def prune(options: argparse.Namespace, table: LatencyTable, seed: int, found: dict[str, Any], save: Any) -> bool:
    """Make what is missing of a seed: the base and the slim models; False if there is nothing to be timed."""
    common = [f"seed={seed}", f"data.path={options.data_path.absolute()}", *SETTINGS, *options.overrides]
    config, cluster = load_config(CONFIG, common), Cluster()
    missing = [way for way in ("base", *WAYS) if way not in found]
    if missing:
        data = sources_of(config)
        name = f"base-fashion_mnist-resnet20-seed{seed}.h5"
        base = base_of(config, data, cluster, (options.bases or options.folder) / name)
        work = Work(config, base, trace(base), data, cluster, options.folder)
        latency = Latency(table, work.graph, "costs.json")
    for way in missing:
        slim, figures = base, {}
        if way != "base":
            target = target_of(way, options.folder, work.graph, latency)
            slim, figures = prune_here(work, load_config(CONFIG, [*common, *target]))
        by_name = {group.name: group.width for group in trace(slim).groups}
        figures["widths"] = [by_name.get(group.name, group.width) for group in work.graph.groups]
        figures["predicted_fraction"] = latency.total(figures["widths"]) / table.base_ms
        found[way] = figures | measured(work, slim, f"seed{seed}-{way}")
        save()
        print(f"seed {seed}, {way}: top-1 {found[way]['top1']:.2f} at {found[way]['macs_fraction']:.3f}", flush=True)
    return bool(missing) or options.measure_again or "fraction" not in found["base"]


def target_of(way: str, folder: Path, graph: Graph, latency: Latency) -> list[str]:
    if way == "latency":
        costs = (folder / "costs.json").absolute()
        return ["prune.target_macs_fraction=null", f"prune.target={{latency_fraction: {FRACTION}, costs: {costs}}}"]
    fraction = FRACTION if way == "multiply-adds" else macs_fraction_at(graph, latency)
    return [f"prune.target_macs_fraction={fraction:.2f}"]


def macs_fraction_at(graph: Graph, latency: Latency) -> float:
    """The multiply-adds with which equal shares of all layers have `FRACTION` of the latency."""
    shares = np.linspace(1, 0, 1001)
    widths = ([max(1, round(share * width)) for width in graph.widths] for share in shares)
    found = next(each for each in widths if latency.total(each) <= FRACTION * latency.base_ms)
    return graph.macs.total(found) / graph.macs.total(graph.widths)


def measure(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Time the models of a seed in turn."""
    runs = [open_file("onnx", Path(found[way]["onnx"]).read_bytes(), 1, options.threads) for way in ("base", *WAYS)]
    times = time_in_turn(runs, spread_bound=SPREAD_BOUND, max_rounds=MAX_ROUNDS)
    for way, time in zip(("base", *WAYS), times, strict=True):
        found[way] |= {"milliseconds": time.milliseconds, "spread": time.spread}
        found[way]["fraction"] = time.milliseconds / times[0].milliseconds


def off(fraction: float) -> str:
    return f"{100 * (fraction / FRACTION - 1):+.1f} %"


def report(models: dict[str, Any], table: LatencyTable, path: Path) -> None:
    """Print and write the results of all seeds that are done, and their means."""
    done = {seed: found for seed, found in sorted(models.items()) if "fraction" in found.get(WAYS[-1], {})}
    lines = [
        f"Target: {FRACTION:g} of the base model's latency or multiply-adds. Table: base {table.base_ms:.3f} ms,",
        f"{table.num_threads} thread(s), {table.machine.get('processor', '')}.",
        "",
        "| seed | aimed by | top-1 base | top-1 | multiply-adds | latency predicted | latency measured | off 0.6 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [(seed, way, found["base"], found[way]) for seed, found in done.items() for way in WAYS]
    for seed, way, base, slim in rows:
        lines.append(
            f"| {seed} | {way} | {base['top1']:.2f} | {slim['top1']:.2f} | {slim['macs_fraction']:.3f} | "
            f"{slim['predicted_fraction']:.3f} | {slim['fraction']:.3f} | {off(slim['fraction'])} |"
        )
    for way in WAYS:
        of_way = [(base, slim) for _, name, base, slim in rows if name == way]
        means = [
            statistics.mean(values)
            for values in ([base["top1"] for base, _ in of_way], *([slim[name] for _, slim in of_way] for name in
                           ("top1", "macs_fraction", "predicted_fraction", "fraction")))
        ]  # fmt: skip
        lines.append(
            f"| mean | {way} | {means[0]:.2f} | {means[1]:.2f} | " + " | ".join(f"{mean:.3f}" for mean in means[2:])
            + f" | {off(means[-1])} |"
        )  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
