"""Tables of measured times, as `resrep measure` writes them: reading, checking, writing."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from resrep_dist.config.target import Runtime
from resrep_dist.errors import ConfigError, one_line

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MAX_BYTES = 1 << 24
PACKAGES = {"keras": "tensorflow", "tflite": "ai-edge-litert", "onnx": "onnxruntime"}
"""For each runtime the package whose version a table has."""
_AGAIN = "write it again with `resrep measure`"

_Positive = Annotated[int, Gt(0)]
_Milliseconds = Annotated[float, Gt(0)]
_Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, config=_STRICT)
class Steps:
    """How the time of a layer depends on a width between the measured ones.

    A runtime that computes channels in blocks takes as long for a part of a block as for a whole one. A width w counts
    as w + share (m - w), where m is the next multiple of `size`. It may also take a slow way for all widths but the
    multiples of `unit`; they count as detour w. Up to one block, where runtimes may compute in another way, a width
    counts as it is.
    """

    size: _Positive = 1
    """Number of channels of a block."""
    share: _Share = 0.0
    """1 if only whole blocks count, 0 if the time is a straight line."""
    unit: _Positive = 1
    """Widths that are no multiples of it are slow."""
    detour: Annotated[float, Ge(1)] = 1.0
    """How much slower they are."""

    def is_fast(self, width: int, is_free: bool) -> bool:
        """Return True if no wider layer is as fast or faster, as far as the blocks say.

        Args:
            width: Number of channels.
            is_free: True if a part of a block takes as long as a whole one in all layers that the channels reach.
        """
        return width <= self.size or width % (self.size if is_free else self.unit) == 0


@dataclass(frozen=True, config=_STRICT)
class LayerTimes:
    """Times of a layer, and of all that are equal to it, by the number of its channels."""

    names: tuple[str, ...]
    """Names of the layers in the flat model."""
    signature: str
    """See `WeightedCall`."""
    input_widths: tuple[_Positive, ...]
    """Numbers of input channels that were measured, ascending; the last is that of the base model."""
    output_widths: tuple[_Positive, ...]
    """The same for the output channels; only the base model's if they do not change on their own."""
    milliseconds: tuple[tuple[_Milliseconds, ...], ...]
    """Median times, one row for each of `input_widths`."""
    spreads: tuple[tuple[Annotated[float, Ge(0)], ...], ...]
    """Half of the 95 % confidence interval of each median, as a fraction of it."""
    input_steps: Steps = Steps()
    """Between the input widths."""
    output_steps: Steps = Steps()
    """Between the output widths."""

    def __post_init__(self) -> None:
        for name in ("input_widths", "output_widths"):
            widths = getattr(self, name)
            if not widths or list(widths) != sorted(set(widths)):
                raise ValueError(f"{name} of {self.names[0]}: received {list(widths)}, expected rising numbers")
        for name in ("milliseconds", "spreads"):
            shape = {len(self.input_widths)} | {len(row) for row in getattr(self, name)}
            rows = getattr(self, name)
            if len(rows) != len(self.input_widths) or any(len(row) != len(self.output_widths) for row in rows):
                raise ValueError(
                    f"{name} of {self.names[0]}: received {len(rows)} rows of {sorted(shape)} numbers, expected "
                    f"{len(self.input_widths)} of {len(self.output_widths)}: the table has holes"
                )

    @property
    def key(self) -> tuple[str, int, int]:
        """As `WeightedCall.key`."""
        return self.signature, self.input_widths[-1], self.output_widths[-1]


@dataclass(frozen=True, config=_STRICT)
class Check:
    """A whole model that was measured: the sum of its layers was fitted to its time."""

    widths: tuple[int, ...]
    """Number of channels of each group."""
    measured_ms: _Milliseconds
    """Median time."""
    predicted_ms: float
    """Time by the table."""
    spread: float
    """As in `LayerTimes.spreads`."""


@dataclass(frozen=True, config=_STRICT)
class LatencyTable:
    """How long the layers of a model take on a machine."""

    model: str
    """Name of the model."""
    runtime: Runtime
    """What runs the layers."""
    batch_size: _Positive
    """Number of images in a batch."""
    num_threads: _Positive
    """Number of threads."""
    machine: dict[str, str]
    """Processor, number of cores, system."""
    versions: dict[str, str]
    """Versions of packages, that of the runtime among them."""
    date: str
    """When it was measured."""
    spread_bound: Annotated[float, Gt(0)]
    """The spread that was asked for; see `LayerTimes.spreads`."""
    base_ms: _Milliseconds
    """Time of the base model."""
    constant_ms: float
    """Time that does not depend on the widths: all other layers, and the call itself."""
    scale: Annotated[float, Gt(0)]
    """Factor of the sum of the layers' times, measured one by one, in a whole model."""
    layers: tuple[LayerTimes, ...]
    """The layers whose widths pruning changes."""
    checks: tuple[Check, ...] = ()
    """Whole models that `constant_ms` and `scale` come from."""
    format: Annotated[int, Ge(1), Le(1)] = 1
    """Version of this form."""

    @property
    def wide_spreads(self) -> list[str]:
        """Names of layers of which a spread is above the bound."""
        return [layer.names[0] for layer in self.layers if max(max(row) for row in layer.spreads) > self.spread_bound]

    def write(self, path: Path) -> None:
        """Write the table.

        Raises:
            ConfigError: If the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output {path}: cannot be written ({error.strerror}); give another file") from None


def read_table(path: str | Path) -> tuple[LatencyTable, str]:
    """Read a table.

    Args:
        path: The file.

    Returns:
        The table, and the SHA-256 of the file.

    Raises:
        ConfigError: If it cannot be read, or has holes or times that cannot be.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from None
    if len(data) > _MAX_BYTES:
        raise _refused(path, f"more than {_MAX_BYTES:,} bytes")
    try:
        table: LatencyTable = TypeAdapter(LatencyTable).validate_json(data)
    except ValidationError as error:
        raise _refused(path, _describe(error.errors()[0])) from None
    if (package := PACKAGES[table.runtime]) not in table.versions:
        raise _refused(path, f"it says runtime {table.runtime}, but versions has no {package}: it is of another one")
    return table, hashlib.sha256(data).hexdigest()


def _describe(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    place = ".".join(map(str, error["loc"])) or "the file"
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if error["type"].startswith("missing"):
        return f"{place}: missing"
    if error["type"] == "json_invalid":
        return f"no JSON ({error['msg']})"
    return f"{place}: received {one_line(repr(error['input']), 60)}, expected {expected}"


def _refused(path: str | Path, what: str) -> ConfigError:
    return ConfigError(one_line(f"costs {path}: {what}; {_AGAIN}", 500))
