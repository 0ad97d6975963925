"""Names of models that a configuration can give, checked before TensorFlow is imported."""

import difflib
import os
from collections.abc import Iterable

BUILT_IN = (
    *(f"resnet{depth}" for depth in (20, 32, 56, 110, 18, 34, 50, 101, 152)),
    "mobilenet_v1",
    "vgg16_cifar",
)
"""Names of the built-in models; `models/building.py` has their builders."""
_FORMS = (
    "keras:<Name> for a model of keras.applications, file:<path> for a Keras file, or "
    "python:<module>:<function> for a function of yours"
)
_KINDS = ("keras", "file", "python")
_SUFFIXES = (".keras", ".h5", ".hdf5")


def unknown_model(name: str) -> str | None:
    """Return the message for a name that is neither built in nor one of the other forms; None if it is one.

    Whether a file or a function exists, or keras.applications has the name, is not looked at.

    Args:
        name: The key `model.name`.
    """
    kind, separator, rest = name.partition(":")
    if name in BUILT_IN or (separator and kind in _KINDS and rest):
        return None
    if name.lower().endswith(_SUFFIXES):
        return f"model.name: received '{name}'; did you mean `file:{name}`?"
    if separator:
        return (
            f"model.name: received '{name}'; expected a name, keras:<Name>, file:<path> or python:<module>:<function>"
        )
    return (
        f"model.name: received '{name}'; {did_you_mean(name, BUILT_IN)}expected one of {', '.join(BUILT_IN)}, {_FORMS}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean ...? ` with the nearest known name, for a message; empty if none is near.

    Args:
        name: What was given.
        known: The known names.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    lower = name[:100].lower()
    near = difflib.get_close_matches(lower, by_lower, n=len(by_lower) or 1)

    # Of equally near names the one with the longest common beginning: resnet20, not resnet32, for resnet21.
    def likeness(candidate: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(a=lower, b=candidate).ratio()
        return ratio, len(os.path.commonprefix([lower, candidate]))

    return f"did you mean `{by_lower[max(near, key=likeness)]}`? " if near else ""
