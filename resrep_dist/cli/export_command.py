"""The command `resrep export`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.cli.options import add_command, add_overrides, model_file, start_terminal
from resrep_dist.errors import ModelError, UserError, one_line
from resrep_dist.models.result_folder import EXPORT_NAME, NAMES, run_of

_FORMATS = ("saved_model", "tflite", "tflite_float16", "onnx")
_EIGHT_BIT_FORMATS = ("tflite_int8", "onnx_int8")


def add_export_command(commands: Any) -> None:
    """Add the command `export`.

    Args:
        commands: The subparsers of the command line.
    """
    export = add_command(
        commands, "export", "a Keras model into other formats, each compared with it",
        """resrep export runs/digits --format tflite --format onnx
        resrep export runs/digits --format tflite_int8 --max-top1-drop 0.5
        resrep export mine.h5 --format saved_model --config mine.yaml""",
    )  # fmt: skip
    export.add_argument("model", type=Path, help="a finished run, a folder with model.h5, or a Keras file")
    export.add_argument(
        "--format", action="append", required=True, dest="formats", metavar="FORMAT",
        help=f"{', '.join((*_FORMATS, *_EIGHT_BIT_FORMATS))}; may be given several times",
    )  # fmt: skip
    export.add_argument("--config", type=Path, help="configuration that names the images (default: the run's)")
    add_overrides(export)
    export.add_argument("--output", type=Path, help="folder (default: DIR/export of a run, otherwise the model's)")
    eight_bits = export.add_argument_group("eight bits")
    eight_bits.add_argument(
        "--num-calibration-images", type=int, default=256, metavar="N", help="training images (default: 256)"
    )
    eight_bits.add_argument(
        "--io", choices=("float", "integer"), default="float", help="type of input and output (default: float)"
    )
    eight_bits.add_argument(
        "--max-top1-drop", type=float, default=1.0, metavar="POINTS",
        help="of top-1 (mAP, mean IoU) on the validation set, else nothing is written (default: 1.0)",
    )  # fmt: skip
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    _check(options)
    path = model_file(options.model)
    config = _config(options, path)
    console = start_terminal()
    from resrep_dist.data.loading import load_sources
    from resrep_dist.export.record import require_earlier_exports, require_earlier_usage
    from resrep_dist.models.files import file_sha256, load_model
    from resrep_dist.reporting.table import find_report, read_report

    run = run_of(path.parent)
    # A merge replaces the folder of the slim model.
    output = options.output or (run / EXPORT_NAME if run else path.parent)
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: it is a file, expected a folder; give another --output")
    usage = read_report(run).get("usage") if run and find_report(run) else None
    if not _is_of_a_run(output):
        require_earlier_exports(output, map(_file_name, options.formats))
        if usage:
            require_earlier_usage(output)
    model = load_model(path, open_size=config.model.image_size)
    _require_one_input(path, model)
    sources = load_sources(config.data, config.model, config.task)
    _require_shape(path, model, sources[1].first_images(1).shape[1:])
    _write(console, options, config, model, file_sha256(path), sources, output, usage)
    return 0


def _config(options: argparse.Namespace, path: Path) -> Any:
    """Read the configuration that names the images: the one that is given, or that of the model's run."""
    found = [folder / "config.yaml" for folder in path.absolute().parents[:2]]
    config_path = options.config or next((candidate for candidate in found if candidate.exists()), None)
    if config_path is None:
        raise UserError(
            f"--config: missing, and no config.yaml beside or above {path}; it names the images to compare on"
        )
    from resrep_dist.config import load_config

    config = load_config(config_path, options.overrides, to_start=False)
    if config.data.source == "arrays":
        raise UserError(
            "data.source: received 'arrays', which a Python program gives to the Trainer; save them as .npz with "
            "x_train, y_train, x_test and y_test, and add --set data.source=npz --set data.path=FILE, or give a "
            "--config that names these images"
        )
    return config


def _is_of_a_run(folder: Path) -> bool:
    """Return whether a folder is a run's: what older versions exported there is in no record, and is not the user's."""
    folder = folder.absolute()
    is_run = (folder.parent / "config.yaml").exists() and any((folder.parent / name).is_dir() for name in NAMES)
    return is_run and folder.name in (*NAMES, EXPORT_NAME, "base")


def _require_one_input(path: Path, model: Any) -> None:
    if len(model.inputs) != 1:
        raise ModelError(
            f"model {path}: it has {len(model.inputs)} inputs, expected one, of images; export it in a program by "
            "resrep_dist.export_model"
        )


def _require_shape(path: Path, model: Any, images: Sequence[int]) -> None:
    """Check that a model takes images of a shape: height, width, channels."""
    received, expected = tuple(model.inputs[0].shape[1:]), tuple(images)
    if len(received) != 3 or any(size not in (None, known) for size, known in zip(received, expected, strict=True)):
        raise ModelError(
            f"model {path}: it takes images of height, width and channels {received}, but those of the configuration "
            f"are {expected}; give the --config that it was trained with, or --set model.image_size"
        )


def _file_name(format_name: str) -> str:
    from resrep_dist.export.convert import FORMATS
    from resrep_dist.export.eight_bits import EIGHT_BIT_FORMATS

    is_float = format_name in FORMATS
    return FORMATS[format_name][0] if is_float else EIGHT_BIT_FORMATS[format_name].file_name


def _check(options: argparse.Namespace) -> None:
    known = (*_FORMATS, *_EIGHT_BIT_FORMATS)
    for name in options.formats:
        if name not in known:
            raise UserError(f"--format {one_line(name)}: there is no such format; expected one of {', '.join(known)}")
    if options.num_calibration_images < 1:
        raise UserError(
            f"--num-calibration-images {options.num_calibration_images}: there is no calibration without images; give "
            "1 or more, for example 256"
        )
    if not options.max_top1_drop >= 0:
        raise UserError(f"--max-top1-drop {options.max_top1_drop:g}: expected percentage points, 0 or more")


def _write(
    console: Any, options: argparse.Namespace, config: Any, model: Any, model_sha256: str, sources: Any, output: Path,
    usage: Any,
) -> None:  # fmt: skip
    from resrep_dist.data.order import first_epoch_images
    from resrep_dist.export.convert import export_model, print_export, size_bytes
    from resrep_dist.export.eight_bits import export_eight_bits, print_eight_bits, require_one_end
    from resrep_dist.export.record import record_export, record_usage
    from resrep_dist.training.phase import phase_seed

    in_eight_bits = [name for name in options.formats if name in _EIGHT_BIT_FORMATS]
    if in_eight_bits:
        # Before the images are read.
        require_one_end(model)
        seed = phase_seed(config, is_pruning=config.prune is not None)
        calibration_images = first_epoch_images(sources[0], options.num_calibration_images, seed)
    if len(in_eight_bits) < len(options.formats):
        images = sources[1].first_images(config.merge.num_images)
    for name in options.formats:
        export: Any
        if name in in_eight_bits:
            export = export_eight_bits(
                model, name, output, calibration_images, sources[1],
                has_integer_ends=options.io == "integer", max_score_drop=options.max_top1_drop, usage=usage,
            )  # fmt: skip
            print_eight_bits(console, export)
        else:
            export = export_model(model, name, output, images, config.merge.tolerance, usage)
            print_export(console, export)
        record_export(export, size_bytes(export.path), model_sha256)
        if usage:
            record_usage(output, usage)
