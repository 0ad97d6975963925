"""The commands of the first hour: prune, init and predict, which need no configuration."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.cli.options import (
    KEYS,
    add_command,
    add_overrides,
    add_running,
    positive,
    positive_number,
    start_terminal,
)


def add_first_commands(commands: Any) -> None:
    """Add the commands `prune`, `init` and `predict`.

    Args:
        commands: The subparsers of the command line.
    """
    prune = add_command(
        commands, "prune", "prune a trained model on a folder of images, in one call; the same call resumes",
        """resrep prune mine.keras --data photos --target 0.5
        resrep prune keras:MobileNet --weights mobilenet.h5 --data photos --epochs 30
        horovodrun -np 8 resrep prune mine.h5 --data photos --target 0.3 --workdir runs/third""", KEYS,
    )  # fmt: skip
    _add_model(prune)
    prune.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER",
        help="train/<class>/ and val/<class>/ with images, an .npz file, a folder or archive of CIFAR, or "
        "the word digits",
    )  # fmt: skip
    _add_choices(prune)
    prune.add_argument("--workdir", type=Path, help="folder of the run (default: runs/ and the model's name)")
    add_overrides(prune)
    add_running(prune)
    prune.set_defaults(command=_prune)

    init = add_command(
        commands, "init", "print a complete configuration, with comments, for a folder of images and a model",
        """resrep init photos mine.keras > mine.yaml
        resrep init digits resnet20 --image-size 16 > digits.yaml""", KEYS,
    )  # fmt: skip
    init.add_argument("data", type=Path, metavar="FOLDER", help="as --data of `resrep prune`")
    _add_model(init)
    _add_choices(init)
    init.set_defaults(command=_init)

    predict = add_command(
        commands, "predict", "classify image files by the model that a run ended with",
        "resrep predict runs/mine photos/val/cat/1.jpg photos/val/dog/2.jpg",
    )  # fmt: skip
    predict.add_argument("workdir", type=Path, metavar="DIR", help="folder of a finished run")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a JPEG, PNG, BMP or GIF")
    predict.set_defaults(command=_predict)


def _predict(options: argparse.Namespace) -> int:
    console = start_terminal()
    from resrep_dist.runs.prediction import predict

    for path, best in zip(options.images, predict(options.workdir, options.images), strict=True):
        shown = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in best)
        console.print(f"{path}: {shown}", markup=False)
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Keras file (.keras, .h5), or a name as in the key model.name")
    parser.add_argument("--weights", metavar="FILE", help="weights of a model given by name (default: it is trained)")
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="height and width (default: the model's, the data's, or 224)",
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=_fraction, default=0.5, help="multiply-adds that may be left, as a fraction (default: 0.5)"
    )
    parser.add_argument(
        "--epochs", type=positive_number, help="length of the pruning (default: by the number of images)"
    )


def _fraction(text: str) -> float:
    number = float(text)
    if not 0.0 < number < 1.0:
        raise argparse.ArgumentTypeError(f"received {text}, expected a number between 0 and 1, such as 0.5")
    return number


def _proposal(options: argparse.Namespace, settings: Mapping[str, Any] | None = None) -> str:
    from resrep_dist.runs.proposal import propose

    return propose(
        options.model, options.data, options.target, options.epochs, options.weights, options.image_size,
        settings=settings,
    )  # fmt: skip


def _prune(options: argparse.Namespace) -> int:
    console = start_terminal(options.quiet)
    from resrep_dist.cli.running import run_training
    from resrep_dist.config.loading import parse_config, parse_overrides
    from resrep_dist.runs.library import cluster_for

    # There is no configuration yet: it is made once the ranks can tell each other what is wrong with it.
    settings = parse_overrides(options.overrides)
    cluster = cluster_for(settings)
    text = cluster.everywhere(lambda: _proposal(options, settings))
    config = parse_config(text, "the proposed configuration", options.overrides)
    name = Path(options.model).stem if Path(options.model).suffix else options.model.replace(":", "_")
    return run_training(config, options, options.workdir or Path("runs") / name, cluster, console)


def _init(options: argparse.Namespace) -> int:
    start_terminal(is_quiet=True)
    print(_proposal(options))
    return 0
