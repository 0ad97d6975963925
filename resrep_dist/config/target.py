"""The section `prune.target`: what the slim model may cost."""

from typing import Annotated, Literal

from annotated_types import Gt, Lt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Fraction = Annotated[float, Gt(0), Lt(1)]
Runtime = Literal["keras", "tflite", "onnx"]
"""What runs a model: Keras itself, or one of two formats of `resrep export`."""
GOALS = ("macs_fraction", "parameters_fraction", "latency_fraction", "latency_ms")
"""Keys of `prune.target` that say how much may be left."""


@dataclass(frozen=True, config=_STRICT)
class TargetConfig:
    """What the slim model may cost. Exactly one key is given, and `costs` with the two of latency."""

    macs_fraction: Fraction | None = None
    """Multiply-adds, as a fraction of those of the base model."""
    parameters_fraction: Fraction | None = None
    """Parameters, as a fraction of those of the base model, its batch norms folded."""
    latency_fraction: Fraction | None = None
    """Time of a forward pass by the table `costs`, as a fraction of the base model's."""
    latency_ms: Annotated[float, Gt(0)] | None = None
    """Time of a forward pass by the table `costs`, ms."""
    costs: str | None = None
    """File that `resrep measure` wrote for this model: how long its layers take on a machine by their widths."""
    runtime: Runtime | None = None
    """Runtime that the table must be of. None for the table's own."""
    costs_sha256: str | None = None
    """Checksum of the table. A run fills it in, so that it goes on with the same table only."""

    @property
    def goals(self) -> dict[str, float]:
        """The goals that are given, by their keys."""
        values = {name: getattr(self, name) for name in GOALS}
        return {name: value for name, value in values.items() if value is not None}

    def __post_init__(self) -> None:
        if len(self.goals) != 1:
            received = " and ".join(f"{name} {value:g}" for name, value in self.goals.items()) or "none of them"
            raise ValueError(f"prune.target: received {received}, expected exactly one of {', '.join(GOALS)}")
        (name,) = self.goals
        if name.startswith("latency") and self.costs is None:
            raise ValueError(
                f"prune.target.costs: missing beside {name}; expected the file that `resrep measure` wrote for this "
                "model on the machine that it is meant for"
            )
