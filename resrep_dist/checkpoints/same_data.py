"""Compares the data of a run: that of all ranks, and that of a run that resumes with what it was started with."""

import logging
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import DataError, one_line

import numpy as np

_log = logging.getLogger(__name__)
_PIXELS = "checksum of the images"


def check_data_of_ranks(cluster: Cluster, current: Mapping[str, Any]) -> None:
    """Check that every rank has the data of rank 0. A collective.

    All ranks count steps by the size of their own set and read their part of one order, so with other files on a host
    they would read samples twice or never, and wait for each other in different collectives.

    Args:
        cluster: The ranks.
        current: For each set the fingerprint on this rank; see `ImageSource.fingerprint`.

    Raises:
        DataError: If they differ in anything but their pixels, which hosts of different kinds may compute differently.
            It is raised on the first rank that differs and says in what; the others raise a UserError.
    """
    differences = list(_differences(cluster.from_root(lambda: dict(current)), current, "on rank 0"))
    serious = [text for key, text in differences if key != _PIXELS]
    table = cluster.gather(np.array([len(differences), len(serious)], np.int64))
    (differing,), (refused,) = np.nonzero(table[:, 0]), np.nonzero(table[:, 1])

    def refuse() -> None:
        if len(refused) and cluster.rank == refused[0]:
            raise DataError(
                f"data: host {platform.node()}, rank {cluster.rank}, has other data than rank 0 ({len(refused)} of "
                f"{cluster.size} ranks do): {'; '.join(serious)}; give all ranks all samples, in the same files"
            )

    cluster.everywhere(refuse)
    if len(differing) and cluster.is_root:
        _log.warning(
            "The pixels of the images on rank(s) %s are not those of rank 0. If the hosts have processors of different "
            "kinds, they may have been computed differently; otherwise check that all hosts have the same images.",
            ", ".join(map(str, differing)),
        )


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
    differences = [text for _, text in _differences(saved or {}, current or {}, "there")]
    if not differences:
        return
    found = "; ".join(differences)
    if not accepts_change:
        raise DataError(
            f"data: it has changed since step {step}: {found}; a run that went on would mix both. Restore the data, "
            "use another --workdir, or accept the change by `resrep train --accept-changed-data`"
        )
    _log.warning("The data has changed since step %d, which is accepted: %s.", step, found)


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Return what differs: its key in a fingerprint, and how a message says it."""
    for name in saved.keys() & current.keys():
        before, now = saved[name], current[name]
        # A fingerprint of another version may know more or less.
        for key in [key for key in before if key in now and before[key] != now[key]]:
            values = f"{one_line(before[key], 100)} {where} and {one_line(now[key], 100)} here"
            yield key, f"{name} set: {key} " + ("differs" if key.startswith("checksum") else values)
