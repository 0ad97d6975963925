"""Tables of measured times, as `resrep measure` writes them: reading, checking, writing."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from resrep_dist.config.target import Runtime
from resrep_dist.errors import ConfigError, one_line
from resrep_dist.timing.runtimes import PACKAGES
from resrep_dist.timing.table import Check, LayerTimes

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MAX_BYTES = 1 << 24
_PACKAGES = {"keras": ["tensorflow"], **PACKAGES}
_AGAIN = "write it again with `resrep measure`"

_Positive = Annotated[int, Gt(0)]
_Milliseconds = Annotated[float, Gt(0)]


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
    """Processor, architecture, number of cores, system, and `gpu` if Keras ran on one."""
    versions: dict[str, str]
    """Versions of packages, that of the runtime among them."""
    date: str
    """When it was measured."""
    spread_bound: Annotated[float, Gt(0)]
    """The spread that was asked for; see `LayerTimes.spreads`."""
    base_ms: _Milliseconds
    """Time of the base model."""
    constant_ms: float
    """Time that does not depend on the widths: all other layers, and the call itself. Below zero where the calls of
    single layers, which are in the times of these, take longer than that."""
    scale: Annotated[float, Gt(0)]
    """Factor of the sum of the layers' times, measured one by one, in a whole model."""
    layers: tuple[LayerTimes, ...]
    """The layers whose widths pruning changes."""
    checks: tuple[Check, ...] = ()
    """Whole models that `constant_ms` and `scale` come from."""
    format: Annotated[int, Ge(1), Le(1)] = 1
    """Version of this form."""

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


_ADAPTER: TypeAdapter[LatencyTable] = TypeAdapter(LatencyTable)


def table_from(document: Mapping[str, Any]) -> LatencyTable:
    """Return the table of a measurement.

    Args:
        document: What `timing.measuring.measure` returned.
    """
    return _ADAPTER.validate_json(json.dumps(document))


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
        table = _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise _refused(path, _describe(error.errors()[0])) from None
    if not set(packages := _PACKAGES[table.runtime]) & set(table.versions):
        raise _refused(
            path, f"it says runtime {table.runtime}, but versions has no {' or '.join(packages)}: it is of another one"
        )
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
