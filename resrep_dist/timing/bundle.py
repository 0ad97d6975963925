"""A folder from which a machine is measured: the task, and all model files that may be needed."""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .calls import WeightedCall
from .grids import Point, unequal
from .measuring import Task
from .runtimes import Run, TimingError, open_file

TASK_FILE = "task.json"
"""The task."""
MODELS_FILE = "models.zip"
"""The model files."""
FORMAT = 1
"""Version of the form of bundles."""
_AGAIN = "copy it again, or write it again with `resrep measure --bundle`"


def file_name(task: Task, point: Point) -> str:
    """Return the name of the file of a layer at numbers of input and output channels.

    Args:
        task: What is measured.
        point: The layer and its widths.
    """
    call, inputs, outputs = point
    number = [other.key for other in unequal(task.calls)].index(call.key)
    return f"layer{number}_{inputs}x{outputs}.{task.runtime}"


def name_before(task: Task, point: Point) -> str:
    """Return the name of the file of what a layer is measured behind.

    Args:
        task: What is measured.
        point: The layer and its widths.
    """
    return f"before_{point[0].size}_{point[1]}.{task.runtime}"


def name_of_model(task: Task, number: int) -> str:
    """Return the name of the file of a whole model.

    Args:
        task: What is measured.
        number: As in `Files.whole`.
    """
    return f"model{number}.{task.runtime}"


def write_task(folder: Path, task: Task, versions: Mapping[str, str], num_threads: int | None) -> None:
    """Write the task beside the model files.

    Args:
        folder: The folder, which has the model files.
        task: What is measured.
        versions: Versions of what wrote the files.
        num_threads: Number of threads of the runtime; None for all cores of the machine.
    """
    values = dataclasses.asdict(task) | {"versions": dict(versions), "num_threads": num_threads, "format": FORMAT}
    values["sha256"] = _checksum(values, (folder / MODELS_FILE).read_bytes())
    (folder / TASK_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _checksum(values: Mapping[str, Any], models: bytes) -> str:
    text = json.dumps({name: value for name, value in values.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + models).hexdigest()


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An open bundle."""

    task: Task
    """What is measured."""
    versions: dict[str, str]
    """Versions of what wrote the files."""
    num_threads: int | None
    """Number of threads of the runtime; None for all cores of the machine."""
    files: zipfile.ZipFile
    """The model files."""


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle.

    Args:
        folder: The folder.

    Raises:
        TimingError: If a file is missing, or is not as it was written.
    """
    try:
        values: dict[str, Any] = json.loads((folder / TASK_FILE).read_bytes())
        models = (folder / MODELS_FILE).read_bytes()
    except OSError as error:
        raise TimingError(f"{error.filename}: cannot be read ({error.strerror}); {_AGAIN}") from None
    except ValueError as error:
        raise TimingError(f"{folder / TASK_FILE}: no JSON ({error}); {_AGAIN}") from None
    try:
        task = Task(
            values["model"], values["runtime"], values["batch_size"],
            tuple(map(WeightedCall.from_json, values["calls"])), tuple(values["behind"]),
            tuple(map(tuple, values["model_widths"])),
        )  # fmt: skip
        is_of_this_form = values["format"] == FORMAT
        bundle = Bundle(task, dict(values["versions"]), values["num_threads"], zipfile.ZipFile(io.BytesIO(models)))
        is_unchanged = values["sha256"] == _checksum(values, models)
    except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise TimingError(f"{folder}: it is incomplete or was changed ({error!r}); {_AGAIN}") from None
    if not is_of_this_form or not is_unchanged:
        what = "of another version" if not is_of_this_form else "changed: the checksum of its files is another one"
        raise TimingError(f"{folder}: it is {what}; {_AGAIN}")
    return bundle


class BundleFiles:
    """The model files of a bundle, ready to run; see `Files`.

    Args:
        bundle: The bundle.
        num_threads: Number of threads of the runtime.
    """

    def __init__(self, bundle: Bundle, num_threads: int) -> None:
        self._bundle, self._num_threads = bundle, num_threads

    def layer(self, point: Point) -> Run:
        """See `Files`."""
        return self._open(file_name(self._bundle.task, point))

    def before(self, point: Point) -> Run:
        """See `Files`."""
        return self._open(name_before(self._bundle.task, point))

    def whole(self, number: int) -> Run:
        """See `Files`."""
        return self._open(name_of_model(self._bundle.task, number))

    def _open(self, name: str) -> Run:
        task = self._bundle.task
        try:
            data = self._bundle.files.read(name)
        except KeyError:
            raise TimingError(f"{MODELS_FILE}: it has no {name}; {_AGAIN}") from None
        try:
            return open_file(task.runtime, data, task.batch_size, self._num_threads)
        except TimingError:
            raise
        except Exception as error:  # each runtime has its own classes of errors
            raise TimingError(
                f"{name}: this runtime cannot open it ({' '.join(str(error).split())[:160]}); use a newer one"
            ) from None
