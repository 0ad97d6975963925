"""`resrep benchmark steps` on one host and on two hosts on this machine, over a link of limited bandwidth."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.launchers.two_hosts import ADDRESSES, TwoHosts
from tests.ranks.launcher import REPOSITORY


def steps_command(core: str, config: Path, folder: Path, images_per_rank: int, num_ranks: int, *more: str) -> list[str]:
    """`resrep benchmark steps` on one core."""
    images = f"data.global_batch_size={images_per_rank * num_ranks}"
    options = ["--output", str(folder), "--set", images, *more]
    return ["taskset", "-c", core, sys.executable, "-m", "resrep_dist", "benchmark", "steps", str(config), *options]


def environment(**variables: str) -> dict[str, str]:
    """For a process that finds this environment's programs."""
    path = f"{Path(sys.executable).parent}:{variables.pop('PATH', os.environ['PATH'])}"
    return {"HOME": os.environ["HOME"], "PYTHONPATH": str(REPOSITORY), "PATH": path, **variables}


def read(folder: Path) -> dict:
    """The steps that were measured into this folder."""
    document = json.loads((folder / "benchmark.json").read_text())
    return {**document["steps"], "arms": document["arms"], "ratios": document["ratios"]}


def measure_alone(config: Path, folder: Path, images_per_rank: int, num_ranks: int, *more: str) -> dict:
    """Steps of one rank while as many others as there will be compute beside it, without any link."""
    processes = [
        subprocess.Popen(
            steps_command(str(rank % os.cpu_count()), config, folder / f"alone{rank}", images_per_rank, 1, *more),
            env=environment(), cwd=REPOSITORY, stdout=subprocess.DEVNULL,
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0] * num_ranks
    return read(folder / "alone0")


def measure_linked(
    config: Path, folder: Path, images_per_rank: int, num_ranks: int, megabits: float, *more: str
) -> dict:
    """Steps of so many ranks, half of them on each of two hosts."""
    command = steps_command("CORE", config, folder, images_per_rank, num_ranks, *more)
    run_linked(" ".join(command[3:]), num_ranks, megabits)
    return read(folder)


def run_linked(line: str, num_ranks: int, megabits: float, **variables: str) -> None:
    """A shell command on so many ranks, each on one core, half of them on each of two hosts."""
    with TwoHosts() as hosts:
        hosts.limit(f"{megabits:.1f}mbit")
        slots = ",".join(f"{address}:{num_ranks // 2}" for address in ADDRESSES)
        line = f"exec taskset -c $((HOROVOD_RANK % {os.cpu_count()})) {line}"
        subprocess.run(
            [*hosts.prefix, "horovodrun", "--gloo", "-np", str(num_ranks), "-H", slots,
             "--network-interface", "net0", "bash", "-c", line],
            check=True, env=environment(PATH=hosts.variables["PATH"], **variables), cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
