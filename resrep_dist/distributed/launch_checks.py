"""Checks before training that all hosts fit together; the errors say how to fix it."""

import hashlib
import logging
import platform
import secrets
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.environment import launcher_name
from resrep_dist.errors import UserError
from resrep_dist.version import __version__

import tensorflow as tf

_log = logging.getLogger(__name__)
_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-keras", "horovod", "numpy", "keras")
# A network file system may show a new file with a delay.
_SHARED_WITHIN_SECONDS = 5.0


def check_launch(cluster: Cluster, workdir: Path) -> None:
    """Compare each host with that of rank 0. A collective.

    Args:
        cluster: The ranks.
        workdir: Folder of the run.

    Raises:
        UserError: If a host has other versions than that of rank 0, or has GPUs and the other has not, or does not see
            the same `workdir`.
    """
    if cluster.size == 1:
        return
    start = cluster.from_root(
        lambda: {"versions": installed_versions(), "sees_gpus": _sees_gpus(), "token": _write_token(workdir)}
    )
    token = workdir / start["token"]

    def check_host() -> None:
        # One rank per host is enough.
        if cluster.local_rank == 0:
            _compare_versions(start["versions"])
            _compare_devices(start["sees_gpus"])
            _look_for(token)

    try:
        cluster.everywhere(check_host)
    finally:
        if cluster.is_root:
            token.unlink(missing_ok=True)
    (num_hosts,) = cluster.sum([tf.constant(float(cluster.local_rank == 0))], "hosts")
    _log.info("%d ranks on %d host(s), started by %s.", cluster.size, int(num_hosts), launcher_name())


def installed_versions() -> dict[str, str]:
    """Return the versions of all software that must be the same on all hosts, by name."""
    versions = {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "resrep-dist": f"{__version__} ({_digest_of_source(Path(__file__).parents[1])})",
    }
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def _digest_of_source(package: Path) -> str:
    """Return a digest of this package's source: checkouts of the same version may have different code."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _write_token(workdir: Path) -> str:
    token = workdir / f".launch-{secrets.token_hex(8)}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot be written ({error.strerror}); give a folder of yours") from None
    return token.name


def _compare_versions(expected: Mapping[str, str]) -> None:
    # A host with other source code may list other packages.
    own = installed_versions()
    there = dict.fromkeys(own, "none") | dict(expected)
    differences = [f"{name} {own[name]} here, {there[name]} there" for name in own if own[name] != there[name]]
    if differences:
        raise UserError(
            f"host {platform.node()}: other versions than on the host of rank 0 ({'; '.join(differences)}); "
            "give all hosts the same environment"
        )


def _sees_gpus() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def _compare_devices(expected: bool) -> None:
    # A host whose GPU driver fails would train on its CPU, and all others would wait for it in every step.
    if _sees_gpus() != expected:
        here, there = ("no GPU", "has some") if expected else ("GPUs", "has none")
        raise UserError(
            f"host {platform.node()}: TensorFlow sees {here} here, the host of rank 0 {there}; look at `nvidia-smi` "
            "on both, or train on CPUs everywhere with CUDA_VISIBLE_DEVICES=-1"
        )


def _look_for(token: Path) -> None:
    deadline = time.monotonic() + _SHARED_WITHIN_SECONDS
    while not token.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"host {platform.node()}: --workdir {token.parent} is another folder there than on the host of rank 0; "
                "give one on a file system that all hosts share"
            )
        time.sleep(0.1)
