"""The commands `resrep benchmark` and `resrep plan`, which import TensorFlow after reading their configuration."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.cli.options import add_command, add_config, config_of, positive, start_terminal
from resrep_dist.errors import UserError

RELEASED_RUN = Path(__file__).parents[1] / "benchmark" / "released_run.yaml"


def add_benchmark_commands(commands: Any) -> None:
    """Add the commands `benchmark`, with a sub-command for each kind, and `plan`.

    Args:
        commands: The subparsers of the command line.
    """
    benchmark = commands.add_parser("benchmark", help="measure, always side by side; writes benchmark.json")
    kinds = benchmark.add_subparsers(title="kinds", required=True, metavar="KIND")
    for add_kind in (_add_data, _add_steps, _add_replay):
        kind = add_kind(kinds)
        kind.add_argument("--output", type=Path, default=Path("benchmark"), help="folder (default: ./benchmark)")
    _add_latency(kinds)
    _add_plan(commands)


def _add_data(kinds: Any) -> argparse.ArgumentParser:
    data = add_command(
        kinds, "data", "the training pipeline next to a bare decode loop of the same files",
        "resrep benchmark data mine.yaml --num-images 512",
    )  # fmt: skip
    add_config(data)
    data.add_argument("--num-images", type=positive, default=1024, help="in each round (default: 1024)")
    data.add_argument("--num-rounds", type=positive, default=20, help="the median counts (default: 20)")
    data.set_defaults(command=_benchmark_data)
    return data


def _add_steps(kinds: Any) -> argparse.ArgumentParser:
    steps = add_command(
        kinds, "steps", "training steps: plain, ResRep, shrunken, slim; under horovodrun too",
        "resrep benchmark steps configs/digits_resnet20.yaml --run runs/digits",
    )  # fmt: skip
    add_config(steps)
    steps.add_argument("--num-steps", type=positive, default=10, help="of every arm in each round (default: 10)")
    steps.add_argument("--num-rounds", type=positive, default=5, help="all arms in turn (default: 5)")
    steps.add_argument(
        "--run",
        type=Path,
        metavar="DIR|FILE",
        help="a finished run, or a log as for `replay`, for its widths; default: the same share of every layer",
    )
    steps.add_argument(
        "--arms",
        metavar="A,B",
        help="names as in the table (default: all), also stock_keras on one rank, one_group, resrep_taught; plain is "
        "always measured",
    )
    steps.set_defaults(command=_benchmark_steps)
    return steps


def _add_replay(kinds: Any) -> argparse.ArgumentParser:
    replay = add_command(
        kinds, "replay", "a whole run at the widths of a recorded one, by shrink.mode; under horovodrun too",
        "resrep benchmark replay released_log.json",
    )  # fmt: skip
    replay.add_argument("log", type=Path, metavar="FILE", help="JSON with `living_channels`, see docs/benchmarks.md")
    add_config(replay, default=RELEASED_RUN, default_name="the ResNet-50 of the released run, at 112 px")
    replay.add_argument("--num-steps", type=positive, default=2, help="at each point in each round (default: 2)")
    replay.add_argument("--num-rounds", type=positive, default=3, help="in turn with plain steps (default: 3)")
    replay.set_defaults(command=_benchmark_replay)
    return replay


def _add_latency(kinds: Any) -> None:
    latency = add_command(
        kinds, "latency", "base next to slim model in every format, on this machine",
        """resrep benchmark latency runs/digits
        resrep benchmark latency runs/digits --costs costs.json""",
    )  # fmt: skip
    latency.add_argument("path", type=Path, metavar="CONFIG|DIR", help="a finished run, or a YAML file")
    latency.add_argument("--num-rounds", type=positive, default=100, help="at most (default: 100)")
    latency.add_argument("--output", type=Path, help="folder (default: the run's, of a YAML file ./benchmark)")
    latency.add_argument(
        "--costs", metavar="FILE", help="of a run: table that predicts its layers' times (default: that of its target)"
    )
    latency.set_defaults(command=_benchmark_latency)


def _add_plan(commands: Any) -> None:
    plan = add_command(
        commands, "plan", "what more ranks would bring, from the measured step of one",
        "resrep plan mine.yaml --ranks 8,64 --bandwidth 25",
    )  # fmt: skip
    add_config(plan)
    plan.add_argument("--ranks", type=_numbers, required=True, metavar="8,64,512", help="numbers of ranks")
    plan.add_argument("--bandwidth", type=_between(0.001), required=True, help="of a link in one direction, Gbit/s")
    plan.add_argument("--latency", type=_between(0), default=50.0, help="of a message, microseconds (default: 50)")
    plan.add_argument(
        "--overlap",
        type=_between(0, 1),
        default=0.0,
        help="share of the computation that goes on while the collectives run (default: 0; `resrep train` has more)",
    )
    plan.add_argument(
        "--benchmark", type=Path, metavar="FILE", help="benchmark.json of one rank; default: the steps are measured now"
    )
    plan.add_argument("--output", type=Path, default=Path("benchmark"), help="folder (default: ./benchmark)")
    plan.set_defaults(command=_plan)


def _numbers(text: str) -> list[int]:
    try:
        return [positive(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"received {text}, expected whole numbers as in 8,64") from None


def _between(lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (lowest <= value <= highest and math.isfinite(value)):
            above = f" to {highest:g}" if math.isfinite(highest) else " or more"
            raise argparse.ArgumentTypeError(f"received {text}, expected a number, {lowest:g}{above}")
        return value

    return number


def _plan(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    console = start_terminal()
    from resrep_dist import benchmark
    from resrep_dist.distributed.cluster import Cluster

    if options.benchmark:
        steps = benchmark.read_steps(options.benchmark, config)
    else:
        cluster = Cluster(config.training.deterministic)
        if cluster.size > 1:
            raise UserError(
                f"resrep plan: started on {cluster.size} ranks, expected 1, since their steps include a "
                "collective; start it without a launcher"
            )
        steps = benchmark.benchmark_steps(config, cluster, num_steps=5, num_rounds=3)
        benchmark.write_benchmark(options.output, benchmark.steps_sections(steps))
    result = benchmark.plan(steps, options.ranks, options.bandwidth, options.latency, options.overlap)
    path = benchmark.write_benchmark(options.output, {"plan": result})
    benchmark.print_plan(console, result)
    console.print(f"File: {path}", markup=False)
    return 0


def _benchmark_data(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    console = start_terminal()
    from resrep_dist import benchmark

    result = benchmark.benchmark_data(config, options.num_images, options.num_rounds)
    path = benchmark.write_benchmark(options.output, {"data": result})
    benchmark.print_data_benchmark(console, result)
    console.print(f"File: {path}", markup=False)
    return 0


def _names_of_arms(text: str | None, default: Sequence[str], others: Sequence[str]) -> Sequence[str]:
    if text is None:
        return default
    names, known = text.split(","), [*default, *others]
    if not set(names) <= set(known):
        raise UserError(f"--arms {text}: expected some of {','.join(known)}")
    return ["plain", *names]


def _benchmark_steps(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    console = start_terminal()
    from resrep_dist import benchmark
    from resrep_dist.distributed.cluster import Cluster

    cluster = Cluster(config.training.deterministic)
    names = _names_of_arms(options.arms, benchmark.ARMS, benchmark.OTHER_ARMS)
    result = benchmark.benchmark_steps(config, cluster, options.num_steps, options.num_rounds, options.run, names)
    path = cluster.from_root(lambda: str(benchmark.write_benchmark(options.output, benchmark.steps_sections(result))))
    if cluster.is_root:
        benchmark.print_steps_benchmark(console, result)
        console.print(f"File: {path}", markup=False)
        _draw(console, options.output, "steps", result)
    cluster.shutdown()
    return 0


def _benchmark_replay(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    console = start_terminal()
    from resrep_dist import benchmark
    from resrep_dist.distributed.cluster import Cluster

    cluster = Cluster(config.training.deterministic)
    result = benchmark.benchmark_replay(config, options.log, cluster, options.num_steps, options.num_rounds)
    path = cluster.from_root(lambda: str(benchmark.write_benchmark(options.output, {"replay": result})))
    if cluster.is_root:
        benchmark.print_replay_benchmark(console, result)
        console.print(f"File: {path}", markup=False)
        _draw(console, options.output, "replay", result)
    cluster.shutdown()
    return 0


def _draw(console: Any, folder: Path, section: str, result: dict[str, Any]) -> None:
    try:
        from resrep_dist.benchmark.charts import PICTURES
    except ImportError as error:
        console.print(
            f"No picture: {error}; install what is missing with `pip install 'resrep-dist[report]'`", markup=False
        )
        return
    path = folder / f"{section}.svg"
    path.write_text(PICTURES[section](result), encoding="utf-8")
    console.print(f"Picture: {path}", markup=False)


def _benchmark_latency(options: argparse.Namespace) -> int:
    if options.costs and not options.path.is_dir():
        raise UserError(f"--costs {options.costs}: received with a configuration, expected it with the folder of a run")
    console = start_terminal()
    from resrep_dist import benchmark

    result = benchmark.benchmark_latency(options.path, options.num_rounds, options.costs)
    output = options.output or (options.path if options.path.is_dir() else Path("benchmark"))
    path = benchmark.write_benchmark(output, {"latency": result})
    benchmark.print_latency_benchmark(console, result)
    console.print(f"File: {path}", markup=False)
    return 0
