"""The command line. TensorFlow is imported only by a command that has read its configuration."""

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist import __version__
from resrep_dist.errors import RankLostError, StoppedError, UserError
from resrep_dist.launch_environment import is_launched, launched_rank, leave


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors of ours are one line on rank 0."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _explain(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and is_launched():
        leave(code)
    return code


def _explain(error: Exception) -> int:
    code = getattr(error, "exit_code", None)
    if code is not None:
        if launched_rank() == 0 or getattr(error, "is_of_one_rank", False):
            kind = "" if isinstance(error, StoppedError) else "error: "
            print(f"resrep: {kind}{error}", file=sys.stderr, flush=True)
        else:
            # Rank 0 says it for all; leaving first would make the launcher end rank 0 before it has.
            time.sleep(2)
        return int(code)
    message = str(error)
    if "Horovod" in message or "HorovodInternalError" in type(error).__name__:
        # The watch over the other ranks knows which one, says it and ends this process; if it cannot:
        time.sleep(4)
        print(
            f"resrep: error: rank {launched_rank()} lost another rank ({message.splitlines()[0][:160]}); "
            "start the same command again to resume from the last checkpoint",
            file=sys.stderr,
        )
        return RankLostError.exit_code
    traceback.print_exc()
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resrep", description="Prune convolutional networks while they train, on many processes or one."
    )
    parser.add_argument("--version", action="version", version=f"resrep {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train, prune and merge, or train alone; the same --workdir means resume")
    _add_config(train)
    train.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    train.set_defaults(command=_train)

    merge = commands.add_parser("merge", help="write the slim model of a run's newest checkpoint")
    merge.add_argument("workdir", type=Path, help="folder of the run")
    merge.set_defaults(command=_merge)

    evaluate = commands.add_parser("evaluate", help="top-1 of a Keras model on the validation set")
    evaluate.add_argument("model", type=Path, help="a folder with model.h5, or a Keras file")
    evaluate.add_argument("--config", required=True, help="configuration that names the data")
    evaluate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    evaluate.set_defaults(command=_evaluate)

    inspect = commands.add_parser("inspect", help="what would be pruned, and what it costs; no training")
    _add_config(inspect)
    inspect.add_argument("--ranks", type=int, default=1, help="ranks that share the batch, for the memory of each")
    inspect.set_defaults(command=_inspect)

    report = commands.add_parser("report", help="the table of a finished run, or of several")
    report.add_argument("workdirs", type=Path, nargs="+", metavar="workdir", help="folder of a run")
    report.set_defaults(command=_report)

    benchmark = commands.add_parser("benchmark", help="measure, always side by side; writes benchmark.json")
    kinds = benchmark.add_subparsers(title="kinds", required=True, metavar="KIND")
    data = kinds.add_parser("data", help="the training pipeline next to a bare decode loop of the same files")
    _add_config(data)
    data.add_argument("--num-images", type=_positive, default=2048, help="in each round (default: 2048)")
    data.add_argument("--num-rounds", type=_positive, default=5, help="the median counts (default: 5)")
    data.set_defaults(command=_benchmark_data)
    steps = kinds.add_parser(
        "steps", help="training steps: plain, ResRep, shrunken in each way, slim; under horovodrun too"
    )
    _add_config(steps)
    steps.add_argument("--num-steps", type=_positive, default=10, help="of every arm in each round (default: 10)")
    steps.add_argument("--num-rounds", type=_positive, default=5, help="all arms in turn (default: 5)")
    steps.add_argument(
        "--run", type=Path, help="a finished run, for its widths; default: the same share of every layer"
    )
    steps.set_defaults(command=_benchmark_steps)
    for kind in (data, steps):
        kind.add_argument("--output", type=Path, default=Path("benchmark"), help="folder (default: ./benchmark)")

    doctor = commands.add_parser("doctor", help="what is installed, what is missing, how to mend it")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="as in train.num_epochs=10",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"received {text}, expected 1 or more")
    return number


def _train(options: argparse.Namespace) -> int:
    config = _load_config(options)
    console = _start_terminal()
    from resrep_dist import run
    from resrep_dist.cluster import Cluster
    from resrep_dist.report import print_report

    cluster = Cluster()
    report = run.train(config, options.workdir, cluster, console)
    if cluster.size == 1:
        print_report(console, report, options.workdir)
    elif cluster.is_root:
        # Launchers put the rank before every line, which would tear a table apart.
        folder = options.workdir / ("slim" if config.prune else "final")
        console.print(f"Done: {folder}. `resrep report {options.workdir}` prints the table.")
    cluster.shutdown()
    return 0


def _merge(options: argparse.Namespace) -> int:
    if not (options.workdir / "config.yaml").exists():
        raise UserError(f"{options.workdir}: not a run (no config.yaml); give the --workdir of `resrep train`")
    console = _start_terminal()
    from resrep_dist import run
    from resrep_dist.report import print_report

    print_report(console, run.merge_run(options.workdir), options.workdir)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    config = _load_config(options)
    path = options.model / "model.h5" if options.model.is_dir() else options.model
    if not path.exists():
        raise UserError(f"model {path}: no such file; give a Keras file or a folder with model.h5")
    console = _start_terminal()
    from resrep_dist.data import load_sources
    from resrep_dist.evaluation import Evaluator
    from resrep_dist.models.files import load_model

    _, validation_data = load_sources(config)
    evaluator = Evaluator(load_model(path), config.training.metrics)
    values = evaluator.evaluate(validation_data, config.data.evaluation_batch_size)
    figures = [f"top-1 {values.pop('top1'):.2f} %"]
    figures += [f"top-5 {values.pop('top5'):.2f} %"] if "top5" in values else []
    figures += [f"{name} {value:.4g}" for name, value in values.items()]
    console.print(f"{', '.join(figures)} on {len(validation_data)} images ({path})")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    config = _load_config(options)
    if not 1 <= options.ranks <= config.data.global_batch_size:
        raise UserError(
            f"--ranks {options.ranks}: expected 1 to {config.data.global_batch_size}, the global batch size"
        )
    console = _start_terminal()
    from resrep_dist.inspection import print_inspection

    print_inspection(console, config, options.ranks)
    return 0


def _report(options: argparse.Namespace) -> int:
    console = _start_terminal()
    from resrep_dist.report import print_comparison, print_report, read_report

    reports = {workdir: read_report(workdir) for workdir in options.workdirs}
    if len(reports) == 1:
        ((workdir, report),) = reports.items()
        print_report(console, report, workdir)
    else:
        print_comparison(console, reports)
    return 0


def _benchmark_data(options: argparse.Namespace) -> int:
    config = _load_config(options)
    console = _start_terminal()
    from resrep_dist import benchmark

    result = benchmark.benchmark_data(config, options.num_images, options.num_rounds)
    path = benchmark.write_benchmark(options.output, "data", result)
    benchmark.print_data_benchmark(console, result)
    console.print(f"File: {path}")
    return 0


def _benchmark_steps(options: argparse.Namespace) -> int:
    config = _load_config(options)
    console = _start_terminal()
    from resrep_dist import benchmark
    from resrep_dist.cluster import Cluster
    from resrep_dist.report import read_report

    kept = None
    if options.run:
        channels = read_report(options.run).get("certificate", {}).get("channels", {})
        kept = {name: counts["kept"] for name, counts in channels.items()}
    cluster = Cluster()
    result = benchmark.benchmark_steps(config, cluster, options.num_steps, options.num_rounds, kept)
    path = cluster.from_root(lambda: str(benchmark.write_benchmark(options.output, "steps", result)))
    if cluster.is_root:
        benchmark.print_steps_benchmark(console, result)
        console.print(f"File: {path}")
    cluster.shutdown()
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from resrep_dist.doctor import run_doctor

    from rich.console import Console

    return run_doctor(Console())


def _load_config(options: argparse.Namespace) -> Any:
    from resrep_dist.config import load_config

    return load_config(options.config, options.overrides)


def _start_terminal() -> Any:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from resrep_dist.monitor import configure_logging, make_console

    console = make_console()
    configure_logging(console, launched_rank() == 0)
    return console


if __name__ == "__main__":
    sys.exit(main())
