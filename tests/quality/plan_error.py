"""How far `resrep plan` is from real steps, over links of limited bandwidth between two hosts on this machine.

    python -m tests.quality.plan_error [--ranks 2 4] [--megabits 100 20] [--set model.name=resnet56]

As root. Every rank has one core; where there are more ranks than cores, as many share one when they are measured alone.
"""

import argparse
import tempfile
from pathlib import Path

from resrep_dist.benchmark import plan
from tests.networks import DIGITS_CONFIG
from tests.quality.linked_steps import measure_alone, measure_linked

IMAGES_PER_RANK = 16


def main() -> None:
    """Print one line for each number of ranks, bandwidth and arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--megabits", type=int, nargs="+", default=[100, 20])
    parser.add_argument("--set", action="append", default=[], dest="sets")
    arguments = parser.parse_args()
    print(f"{'ranks':>5} {'Mbit/s':>6} {'arm':16} {'alone':>8} {'planned':>8} {'measured':>8}  error")
    with tempfile.TemporaryDirectory() as name:
        for num_ranks in arguments.ranks:
            folder = Path(name) / str(num_ranks)
            sets = [argument for setting in arguments.sets for argument in ("--set", setting)]
            alone = measure_alone(DIGITS_CONFIG, folder, IMAGES_PER_RANK, num_ranks, *sets)
            for megabits in arguments.megabits:
                target = folder / str(megabits)
                linked = measure_linked(DIGITS_CONFIG, target, IMAGES_PER_RANK, num_ranks, megabits, *sets)
                rows = {row["arm"]: row for row in plan(alone, [num_ranks], megabits / 1000)["rows"][::2]}
                for arm, figures in linked["arms"].items():
                    planned, measured = rows[arm]["step_ms"], figures["step_ms_median"]
                    own = alone["arms"][arm]["step_ms_median"]
                    print(
                        f"{num_ranks:5} {megabits:6} {arm:16} {own:5.0f} ms {planned:5.0f} ms {measured:5.0f} ms "
                        f"{100 * (planned / measured - 1):+6.1f} %",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
