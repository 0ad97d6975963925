"""At the same multiply-adds, aimed by latency or not: `python -m tests.quality.same_macs`.

Nothing is trained: the norms of the channels are random. For each fraction of the base model's latency the widths are
chosen by a table of measured times. The multiply-adds that these have are the target of the other model, whose widths
are chosen by multiply-adds alone. Both are timed in turn with the base model. The table is measured first, unless it
lies in `--folder`.

Example:
    python -m tests.quality.same_macs --model resnet50 --image-size 224 --threads 2
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.measure import measure_costs
from resrep_dist.benchmark.timers import whole_model
from resrep_dist.config import Config, build_config
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.graph import Graph, trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.models.building import build_model
from resrep_dist.pruning.goals import goal_of, ranking_scales
from resrep_dist.pruning.rules import Selection, select_masks
from resrep_dist.timing.rounds import time_in_turn
from tests.quality.measured_costs import at_widths

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--runtime", default="onnx", choices=("keras", "tflite", "onnx"))
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    parser.add_argument("--threads", type=int, default=visible_cores())
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.6], help="of the base model's latency")
    parser.add_argument("--rankings", nargs="+", default=["norm", "norm_per_cost"], help="of the one that is aimed")
    parser.add_argument("--seed", type=int, default=0, help="of the norms")
    parser.add_argument("--folder", type=Path, default=Path("build/same_macs"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    setting = (options.model, options.image_size, options.runtime, options.threads, options.batch)
    costs = options.folder / f"{'_'.join(map(str, setting))}.json"
    if not costs.exists():
        start = time.monotonic()
        config = config_of(options, {"target_macs_fraction": 0.5})
        measure_costs(config, options.runtime, options.threads, options.batch, lambda *_: None).write(costs)
        print(f"table in {time.monotonic() - start:.0f} s", flush=True)
    rows = compare(options, costs)
    (options.folder / "same_macs.json").write_text(json.dumps(rows, indent=1))
    print("| asked | ranking | multiply-adds | | aimed ms | | not aimed ms | | aimed / not aimed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        aimed, other = row["aimed"], row["not_aimed"]
        print(
            f"| {row['asked']:.2f} | {row['ranking']} | {aimed['macs_fraction']:.3f} | {other['macs_fraction']:.3f} | "
            f"{aimed['ms']:.2f} | {aimed['ms'] / row['base_ms']:.3f} | {other['ms']:.2f} | "
            f"{other['ms'] / row['base_ms']:.3f} | {aimed['ms'] / other['ms']:.3f} |"
        )


def config_of(options: argparse.Namespace, prune: dict[str, Any]) -> Config:
    document = {
        "model": {"name": options.model, "num_classes": 10, "image_size": options.image_size},
        "data": {"source": "digits", "global_batch_size": 64},
        "train": {"num_epochs": 1, "learning_rate": 0.01},
        "prune": prune,
    }
    return build_config(document, to_start=False)


def compare(options: argparse.Namespace, costs: Path) -> list[dict[str, Any]]:
    """Choose widths in both ways for each fraction and ranking, and time all models in turn."""
    model = build_model(config_of(options, {"target_macs_fraction": 0.5}).model)
    graph = trace(model)
    full = graph.macs.total(graph.widths)
    models, rows = [model], []
    pruned = insert_compactors(model, graph)
    for fraction in options.fractions:
        for ranking in options.rankings:
            target = {"latency_fraction": fraction, "costs": str(costs)}
            aimed, predicted = select(options, graph, {"target": target, "ranking": ranking})
            macs = graph.macs.total(aimed.widths) / full
            other, _ = select(options, graph, {"target_macs_fraction": macs})
            models += [at_widths(pruned, graph, chosen.widths) for chosen in (aimed, other)]
            rows.append(
                {"asked": fraction, "ranking": ranking, "predicted_ms": predicted}
                | {
                    name: {"widths": chosen.widths, "macs_fraction": graph.macs.total(chosen.widths) / full}
                    for name, chosen in (("aimed", aimed), ("not_aimed", other))
                }
            )
    runs = [whole_model(each, options.runtime, options.batch, options.threads) for each in models]
    base, *times = time_in_turn(runs, spread_bound=0.01, max_rounds=400)
    for row, aimed_time, other_time in zip(rows, times[::2], times[1::2], strict=True):
        row["base_ms"] = base.milliseconds
        for name, measured in (("aimed", aimed_time), ("not_aimed", other_time)):
            row[name] |= {"ms": measured.milliseconds, "spread": measured.spread}
    return rows


def select(options: argparse.Namespace, graph: Graph, prune: dict[str, Any]) -> tuple[Selection, float]:
    """Choose the masks for random norms as a run would at its end; also return their cost as it is counted."""
    settings = config_of(options, prune).prune
    goal = goal_of(graph, settings)
    random = np.random.default_rng(options.seed)
    selection = select_masks(
        [random.uniform(size=width) for width in graph.widths], goal.cost, target_cost=goal.limit,
        max_chosen=sum(graph.widths), min_channels=settings.min_channels, round_to=graph.multiples(settings.round_to),
        scales=ranking_scales(goal, graph, settings),
    )  # fmt: skip
    return selection, selection.cost


if __name__ == "__main__":
    main()
