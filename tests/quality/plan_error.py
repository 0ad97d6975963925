"""How far `resrep plan` is from real steps, over links of limited bandwidth between two hosts on this machine.

    python -m tests.quality.plan_error [--ranks 2 4] [--megabits 100 20] [--set model.name=resnet56]

As root. Every rank has one core; where there are more ranks than cores, as many share one when they are measured alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from resrep_dist.benchmark import plan
from tests.launchers.two_hosts import ADDRESSES, TwoHosts
from tests.networks import DIGITS_CONFIG
from tests.ranks.launcher import REPOSITORY

RESREP = str(Path(sys.executable).with_name("resrep"))
IMAGES_PER_RANK = 16


def steps_command(core: str, folder: Path, num_ranks: int, sets: Sequence[str]) -> list[str]:
    """`resrep benchmark steps` on one core."""
    images = f"data.global_batch_size={IMAGES_PER_RANK * num_ranks}"
    more = [argument for setting in (images, *sets) for argument in ("--set", setting)]
    return ["taskset", "-c", core, RESREP, "benchmark", "steps", str(DIGITS_CONFIG), "--output", str(folder), *more]


def environment(**variables: str) -> dict[str, str]:
    """For a process that finds this environment's programs."""
    path = f"{Path(sys.executable).parent}:{variables.pop('PATH', os.environ['PATH'])}"
    return {"HOME": os.environ["HOME"], "PYTHONPATH": str(REPOSITORY), "PATH": path, **variables}


def read(folder: Path) -> dict:
    """The steps that were measured into this folder."""
    document = json.loads((folder / "benchmark.json").read_text())
    return {**document["steps"], "arms": document["arms"]}


def measure_alone(folder: Path, num_ranks: int, sets: Sequence[str]) -> dict:
    """Steps of one rank while as many others as there will be compute beside it, without any link."""
    processes = [
        subprocess.Popen(
            steps_command(str(rank % os.cpu_count()), folder / f"alone{rank}", 1, sets),
            env=environment(), stdout=subprocess.DEVNULL,
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0] * num_ranks
    return read(folder / "alone0")


def measure_linked(folder: Path, num_ranks: int, megabits: int, sets: Sequence[str]) -> dict:
    """Steps of so many ranks, half of them on each of two hosts."""
    with TwoHosts() as hosts:
        hosts.limit(f"{megabits}mbit")
        slots = ",".join(f"{address}:{num_ranks // 2}" for address in ADDRESSES)
        command = steps_command("CORE", folder, num_ranks, sets)
        line = " ".join(command).replace("CORE", f"$((HOROVOD_RANK % {os.cpu_count()}))")
        subprocess.run(
            [*hosts.prefix, "horovodrun", "--gloo", "-np", str(num_ranks), "-H", slots,
             "--network-interface", "net0", "bash", "-c", line],
            check=True, env=environment(PATH=hosts.variables["PATH"]), stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return read(folder)


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
            alone = measure_alone(folder, num_ranks, arguments.sets)
            for megabits in arguments.megabits:
                linked = measure_linked(folder / str(megabits), num_ranks, megabits, arguments.sets)
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
