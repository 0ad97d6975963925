"""Compares the data of a run that resumes with the data that it was started with."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from resrep_dist.errors import DataError, one_line

_log = logging.getLogger(__name__)


def check_same_data(
    saved: Mapping[str, Any] | None, current: Mapping[str, Any] | None, step: int, *, accepts_change: bool = False
) -> None:
    """Check that the data of a checkpoint is the present one.

    Args:
        saved: For each set the fingerprint in the checkpoint. None in a checkpoint of an older version, which has none.
        current: The same of the present data; see `ImageSource.fingerprint`. None to compare nothing.
        step: Step of the checkpoint, for the message.
        accepts_change: True to log what differs and go on.

    Raises:
        DataError: If they differ; the message says in what.
    """
    differences = list(_differences(saved or {}, current or {}))
    if not differences:
        return
    found = "; ".join(differences)
    if not accepts_change:
        raise DataError(
            f"data: it has changed since step {step}: {found}; a run that went on would mix both. Restore the data, "
            "use another --workdir, or accept the change by `resrep train --accept-changed-data`"
        )
    _log.warning("The data has changed since step %d, which is accepted: %s.", step, found)


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    for name in saved.keys() & current.keys():
        before, now = saved[name], current[name]
        # A fingerprint of another version may know more or less.
        for key in [key for key in before if key in now and before[key] != now[key]]:
            values = f"{one_line(before[key], 100)} there and {one_line(now[key], 100)} here"
            yield f"{name} set: {key} " + ("differs" if key.startswith("checksum") else values)
