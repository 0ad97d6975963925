"""Which numbers the integers of a file in eight bits stand for."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from resrep_dist.errors import ModelError

import numpy as np

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""From inputs by name to outputs by name."""
ENCODINGS_KEY = "encodings"
"""Key of the encodings of inputs and outputs in the metadata of an ONNX file, as JSON."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """An integer stands for the number `scale * (integer - zero_point)`."""

    type_name: str
    """Type of the integers: `int8` or `uint8`."""
    scale: float
    """Difference between the numbers of two integers that follow each other."""
    zero_point: int
    """The integer that stands for 0."""

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """Return the integers that are nearest to numbers, float32 [...]."""
        limits = np.iinfo(self.type_name)
        integers = np.round(numbers / np.float32(self.scale)) + self.zero_point
        return np.clip(integers, limits.min, limits.max).astype(self.type_name)

    def decode(self, integers: np.ndarray) -> np.ndarray:
        """Return the numbers that integers stand for, float32 [...]."""
        return (np.float32(self.scale) * (integers.astype(np.float32) - self.zero_point)).astype(np.float32)


def encodings_to_json(encodings: Mapping[str, Encoding]) -> str:
    """Return encodings by name as JSON, for the metadata of an ONNX file."""
    return json.dumps({name: dataclasses.asdict(encoding) for name, encoding in encodings.items()})


def encodings_from(text: str | None) -> dict[str, Encoding]:
    """Return the encodings that `encodings_to_json` wrote; none for None."""
    return {name: Encoding(**values) for name, values in json.loads(text or "{}").items()}


def require_encodings(path: Path, types: Mapping[str, str], encodings: Mapping[str, Encoding]) -> None:
    """Check that an ONNX file says what its integers stand for.

    Args:
        path: The file, for the message.
        types: Types of its inputs and outputs by name, such as `tensor(uint8)`.
        encodings: The encodings that it has.

    Raises:
        ModelError: If an input or output of integers has none.
    """
    for name, type_name in types.items():
        if "int" in type_name and name not in encodings:
            raise ModelError(
                f"model {path}: {name} is a {type_name}, and the file does not say which numbers these integers stand "
                f"for (metadata `{ENCODINGS_KEY}`); export it again with `resrep export`"
            )


def in_numbers(run: Run, encodings: Mapping[str, Encoding]) -> Run:
    """Return what takes and gives numbers, from what takes and gives the integers of a file.

    Args:
        run: Computes a file.
        encodings: Those of its inputs and outputs that are integers, by name.
    """

    def run_on_numbers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: encodings[name].encode(a) if name in encodings else a for name, a in arrays.items()}
        return {name: encodings[name].decode(a) if name in encodings else a for name, a in run(given).items()}

    return run_on_numbers if encodings else run


def encoding_once(run: Run, encodings: Mapping[str, Encoding]) -> Run:
    """Return what takes numbers and gives the outputs of a file as they are, to measure the time of the file alone.

    Args:
        run: As in `in_numbers`.
        encodings: As in `in_numbers`. An array becomes integers only if the last call was given another one.
    """
    last: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def encoded(name: str, array: np.ndarray) -> np.ndarray:
        if name not in last or last[name][0] is not array:
            last[name] = array, encodings[name].encode(array)
        return last[name][1]

    return lambda arrays: run({name: encoded(name, a) if name in encodings else a for name, a in arrays.items()})
