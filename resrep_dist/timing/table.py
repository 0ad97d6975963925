"""The parts of a table of measured times: times of layers, and of whole models."""

import dataclasses

# For pydantic, which reads tables where it is installed.
_STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclasses.dataclass(frozen=True)
class Steps:
    """How the time of a layer depends on a width between the measured ones.

    A runtime that computes channels in blocks takes as long for a part of a block as for a whole one. A width w counts
    as w + share (m - w), where m is the next multiple of `size`. It may also take a slow way for all widths but the
    multiples of `unit`; they count as detour w. Up to one block, where runtimes may compute in another way, a width
    counts as it is.
    """

    __pydantic_config__ = _STRICT

    size: int = 1
    """Number of channels of a block."""
    share: float = 0.0
    """1 if only whole blocks count, 0 if the time is a straight line."""
    unit: int = 1
    """Widths that are no multiples of it are slow."""
    detour: float = 1.0
    """How much slower they are."""

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("share", 0), ("unit", 1), ("detour", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: received {getattr(self, name)}, expected at least {least}")
        if self.share > 1:
            raise ValueError(f"share: received {self.share}, expected at most 1")

    def is_fast(self, width: int, is_free: bool) -> bool:
        """Return True if no wider layer is as fast or faster, as far as the blocks say.

        Args:
            width: Number of channels.
            is_free: True if a part of a block takes as long as a whole one in all layers that the channels reach.
        """
        return width <= self.size or width % (self.size if is_free else self.unit) == 0


NO_STEPS = Steps()
"""A straight line."""


@dataclasses.dataclass(frozen=True)
class LayerTimes:
    """Times of a layer, and of all that are equal to it, by the number of its channels."""

    __pydantic_config__ = _STRICT

    names: tuple[str, ...]
    """Names of the layers in the flat model."""
    signature: str
    """See `WeightedCall`."""
    input_widths: tuple[int, ...]
    """Numbers of input channels that were measured, ascending; the last is that of the base model."""
    output_widths: tuple[int, ...]
    """The same for the output channels; only the base model's if they do not change on their own."""
    milliseconds: tuple[tuple[float, ...], ...]
    """Median times, one row for each of `input_widths`."""
    spreads: tuple[tuple[float, ...], ...]
    """Half of the 95 % confidence interval of each median, as a fraction of it."""
    input_steps: Steps = NO_STEPS
    """Between the input widths."""
    output_steps: Steps = NO_STEPS
    """Between the output widths."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names: received none, expected those of the layers")
        for name in ("input_widths", "output_widths"):
            widths = getattr(self, name)
            if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
                raise ValueError(
                    f"{name} of {self.names[0]}: received {list(widths)}, expected rising numbers from 1 on"
                )
        for name in ("milliseconds", "spreads"):
            shape = {len(self.input_widths)} | {len(row) for row in getattr(self, name)}
            rows = getattr(self, name)
            if len(rows) != len(self.input_widths) or any(len(row) != len(self.output_widths) for row in rows):
                raise ValueError(
                    f"{name} of {self.names[0]}: received {len(rows)} rows of {sorted(shape)} numbers, expected "
                    f"{len(self.input_widths)} of {len(self.output_widths)}: the table has holes"
                )
        if (lowest := min(map(min, self.milliseconds))) <= 0:
            raise ValueError(f"milliseconds of {self.names[0]}: received {lowest:g}, expected greater than 0")
        if (lowest := min(map(min, self.spreads))) < 0:
            raise ValueError(f"spreads of {self.names[0]}: received {lowest:g}, expected greater than or equal to 0")

    @property
    def key(self) -> tuple[str, int, int]:
        """As `WeightedCall.key`."""
        return self.signature, self.input_widths[-1], self.output_widths[-1]


@dataclasses.dataclass(frozen=True)
class Check:
    """A whole model that was measured: the sum of its layers was fitted to its time."""

    __pydantic_config__ = _STRICT

    widths: tuple[int, ...]
    """Number of channels of each group."""
    measured_ms: float
    """Median time."""
    predicted_ms: float
    """Time by the table."""
    spread: float
    """As in `LayerTimes.spreads`."""

    def __post_init__(self) -> None:
        if self.measured_ms <= 0:
            raise ValueError(f"measured_ms: received {self.measured_ms:g}, expected greater than 0")
