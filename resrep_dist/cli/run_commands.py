"""The commands of a run: train, merge, evaluate, export, report, inspect, doctor."""

import argparse
from pathlib import Path
from typing import Any

from resrep_dist.cli.export_command import add_export_command
from resrep_dist.cli.options import (
    KEYS,
    add_command,
    add_config,
    add_overrides,
    add_running,
    add_strict,
    config_of,
    model_file,
    start_terminal,
)
from resrep_dist.errors import UserError


def add_run_commands(commands: Any) -> None:
    """Add the commands for runs and models: train, merge, evaluate, inspect, report, export, doctor.

    Args:
        commands: The subparsers of the command line.
    """
    for add in (_add_train, _add_merge, _add_evaluate, _add_inspect, _add_report, add_export_command):
        add(commands)
    doctor = add_command(commands, "doctor", "what is installed, what is missing, how to fix it", "resrep doctor")
    doctor.set_defaults(command=_doctor)


def _add_train(commands: Any) -> None:
    train = add_command(
        commands, "train", "train, prune and merge, or train alone; the same --workdir means resume",
        """resrep train configs/digits_resnet20.yaml --workdir runs/digits
        resrep train mine.yaml --workdir runs/half --set prune.target_macs_fraction=0.5
        resrep train mine.yaml --workdir runs/longer --from runs/half --set train.num_epochs=60
        horovodrun -np 8 resrep train mine.yaml --workdir runs/eight""", KEYS,
    )  # fmt: skip
    add_config(train)
    train.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    train.add_argument(
        "--from", type=Path, dest="run", metavar="DIR", help="another run, whose base model this one starts from"
    )
    train.add_argument(
        "--newest", action="store_true",
        help="with --from: start from its newest state, at its step; refused if that was merged in training",
    )  # fmt: skip
    add_running(train)
    train.set_defaults(command=_train)


def _add_merge(commands: Any) -> None:
    merge = add_command(
        commands, "merge", "write the slim model of a checkpoint of a run",
        """resrep merge runs/digits
        resrep merge runs/digits --checkpoint best""",
    )  # fmt: skip
    merge.add_argument("workdir", type=Path, help="folder of the run")
    merge.add_argument(
        "--checkpoint", type=_checkpoint, default="newest", metavar="best|newest|STEP",
        help="which one; best: the highest top-1 (mAP, mean IoU) among those whose target is reached (default: newest)",
    )  # fmt: skip
    add_strict(merge)
    merge.set_defaults(command=_merge)


def _add_evaluate(commands: Any) -> None:
    evaluate = add_command(
        commands, "evaluate", "the scores (top-1, mAP, mean IoU) and metrics of a model file on the validation set",
        """resrep evaluate runs/digits/slim --config runs/digits/config.yaml
        resrep evaluate mine.h5 --config mine.yaml""",
    )  # fmt: skip
    evaluate.add_argument("model", type=Path, help="a folder with model.h5, a Keras file, or what `export` wrote")
    evaluate.add_argument("--config", required=True, help="configuration that names the data")
    add_overrides(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _add_inspect(commands: Any) -> None:
    inspect = add_command(
        commands, "inspect", "what would be pruned, and what it costs; no training",
        """resrep inspect configs/digits_resnet20.yaml
        resrep inspect mine.yaml --ranks 8 --set prune.residual_groups=true
        resrep inspect mine.yaml --costs costs.json""", KEYS,
    )  # fmt: skip
    add_config(inspect)
    inspect.add_argument(
        "--ranks", type=int, default=1, help="that share the batch, for the memory of each (default: 1)"
    )
    inspect.add_argument(
        "--costs",
        metavar="FILE",
        help="table that `resrep measure` wrote, to see the time of targets that count others",
    )
    inspect.set_defaults(command=_inspect)


def _add_report(commands: Any) -> None:
    report = add_command(
        commands, "report", "the table of a run, and a page of one run or of several",
        """resrep report runs/digits
        resrep report runs/half runs/third --output comparison""",
    )  # fmt: skip
    report.add_argument("workdirs", type=Path, nargs="+", metavar="DIR", help="folder of a run")
    report.add_argument("--output", type=Path, help="folder of the page (default: the run's, of several ./report)")
    report.set_defaults(command=_report)


def _checkpoint(text: str) -> str:
    if text not in ("best", "newest") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"received {text}, expected best, newest, or the number of a step")
    return text


def _train(options: argparse.Namespace) -> int:
    if options.newest and not options.run:
        raise UserError("--newest: given without --from; it says what of that run to start from")
    config = config_of(options, to_start=not options.run)
    console = start_terminal(options.quiet)
    from resrep_dist.cli.running import run_training
    from resrep_dist.distributed.cluster import Cluster
    from resrep_dist.runs.start import from_run

    cluster = Cluster(config.training.deterministic)
    if options.run:
        config = cluster.everywhere(lambda: from_run(config, options.run))
    newest_of = options.run if options.newest else None
    return run_training(config, options, options.workdir, cluster, console, newest_of)


def _merge(options: argparse.Namespace) -> int:
    if not (options.workdir / "config.yaml").exists():
        raise UserError(f"{options.workdir}: not a run (no config.yaml); give the --workdir of `resrep train`")
    from resrep_dist.distributed.lease import Lease

    with Lease(options.workdir):
        console = start_terminal()
        from resrep_dist.reporting.problems import require_success
        from resrep_dist.reporting.table import print_report
        from resrep_dist.runs.results import merge_run

        report = merge_run(options.workdir, checkpoint=options.checkpoint)
    print_report(console, report, options.workdir)
    if options.strict:
        require_success(report)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    path = model_file(options.model)
    console = start_terminal()
    from resrep_dist.config.tasks import named_scores
    from resrep_dist.data.loading import load_sources
    from resrep_dist.export.inference import load_any_model
    from resrep_dist.training.evaluation import Evaluator

    _, validation_data = load_sources(config.data, config.model, config.task)
    model = load_any_model(path, config.model.image_size, config.model.num_classes, config.task)
    evaluator = Evaluator(model, config.training.metrics, config.task)
    values = evaluator.evaluate(validation_data, config.data.evaluation_batch_size)
    console.print(f"{', '.join(named_scores(values))} on {len(validation_data)} images ({path})", markup=False)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    if not 1 <= options.ranks <= config.data.global_batch_size:
        raise UserError(
            f"--ranks {options.ranks}: expected 1 to {config.data.global_batch_size}, the global batch size"
        )
    console = start_terminal()
    from resrep_dist.cli.inspection import print_inspection

    print_inspection(console, config, options.ranks, options.costs)
    return 0


def _report(options: argparse.Namespace) -> int:
    console = start_terminal()
    from resrep_dist.reporting.run_folder import read_runs
    from resrep_dist.reporting.table import print_comparison, print_report

    runs = read_runs(options.workdirs)
    finished = [run for run in runs if run.report]
    if len(finished) > 1:
        print_comparison(console, {run.name: run.report for run in finished if run.report})
    for run in finished if len(finished) == 1 else ():
        print_report(console, run.report or {}, run.workdir)
    try:
        from resrep_dist.reporting.page import write_pages
    except ImportError as error:
        console.print(
            f"No page: {error}; install what is missing with `pip install 'resrep-dist[report]'`", markup=False
        )
        return 0
    one = options.workdirs[0] if len(runs) == 1 else Path("report")
    console.print(f"Page: {write_pages(runs, options.output or one)}", markup=False)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from resrep_dist.cli.doctor import run_doctor

    from rich.console import Console

    return run_doctor(Console())
