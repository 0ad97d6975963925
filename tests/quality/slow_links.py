"""Steps on two hosts with a slow link between them: how much of the collectives the computation hides.

    python -m tests.quality.slow_links [--models resnet56 resnet50] [--rounds 8] [--all-reduce 0.75]

As root, on an idle machine with two cores, of which each rank has one. The link is chosen so that the all-reduce of the
plain step takes a given part of its computation. All arms are measured in turn in one process per rank. Prints their
ratios beside what is expected of them, and ends with code 1 if a bar is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.quality.linked_steps import measure_alone, measure_linked
from tests.ranks.launcher import REPOSITORY

# Configuration, size of the images, images per rank, steps in a round.
MODELS = {
    "resnet56": ("resnet56_cifar10.yaml", 32, 32, 4),
    "resnet50": ("resnet50_imagenet.yaml", 112, 8, 2),
}
ARMS = "stock_horovod,plain,resrep,one_group"


def options(image_size: int, num_steps: int, num_rounds: int, arms: str) -> list[str]:
    """Of `resrep benchmark steps`, with noise for images."""
    sets = ["data.source=synthetic", "data.path=null", f"model.image_size={image_size}"]
    counts = ["--num-steps", str(num_steps), "--num-rounds", str(num_rounds), "--arms", arms]
    return [*counts, *(argument for setting in sets for argument in ("--set", setting))]


def main() -> int:
    """Measure each model, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--all-reduce", type=float, default=0.75, help="its part of a step's computation")
    arguments = parser.parse_args()
    missed = 0
    for name in arguments.models:
        file, image_size, images_per_rank, num_steps = MODELS[name]
        config = REPOSITORY / "configs" / file
        with tempfile.TemporaryDirectory() as folder:
            alone_options = options(image_size, 2, 3, "plain")
            alone = measure_alone(config, Path(folder), images_per_rank, 2, *alone_options)["arms"]["plain"]
            compute_seconds = alone["step_ms_median"] / 1000
            # Two ranks send, and receive, as many bytes as there are.
            megabits = 8e-6 * alone["reduced_bytes"] / (arguments.all_reduce * compute_seconds)
            linked_options = options(image_size, num_steps, arguments.rounds, ARMS)
            result = measure_linked(config, Path(folder) / "linked", images_per_rank, 2, megabits, *linked_options)
        print(
            f"\n{name}, {image_size} px, {images_per_rank} images per rank, 2 ranks: {1000 * compute_seconds:.0f} ms "
            f"without a link; {megabits:.1f} Mbit/s, {alone['reduced_bytes'] / 1e6:.2f} MB"
        )
        missed += print_table(result)
    return int(missed > 0)


def print_table(result: dict) -> int:
    """Print each arm and its ratios, and return how many of them are above their bars."""
    arms, ratios = result["arms"], result["ratios"]
    for name, arm in arms.items():
        print(
            f"  {name:14} {arm['step_ms_median']:8.1f} ms  {ratios[name]['time']:.3f} of plain  "
            f"{arm['negotiated_tensors']:4} tensors  {arm['reduced_bytes'] / 1e6:8.2f} MB"
        )
    own = ratios["resrep"]
    rows = [
        ("plain / stock_horovod", 1 / ratios["stock_horovod"]["time"], 1.03),
        # Of a step that is bound by its computation, or by its link, whichever is more.
        ("resrep / plain", own["time"], max(own["macs"], own["reduced_bytes"]) + 0.03),
        ("tensors of plain", arms["plain"]["negotiated_tensors"], 8),
        ("tensors of resrep", arms["resrep"]["negotiated_tensors"], 8),
    ]
    for text, value, bar in rows:
        print(f"  {text:24} {value:7.3f}  at most {bar:.3f}  {'yes' if value <= bar else 'NO'}")
    print(f"  {'one_group / plain':24} {ratios['one_group']['time']:7.3f}")
    print(f"  {'resrep, multiply-adds':24} {own['macs']:7.3f}   bytes {own['reduced_bytes']:.3f}", flush=True)
    return sum(value > bar for _, value, bar in rows)


if __name__ == "__main__":
    sys.exit(main())
