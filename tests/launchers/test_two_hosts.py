"""Runs over two hosts with their own network, started by ssh from the first."""

import shutil
import subprocess
from pathlib import Path

from tests.launchers.scripts import assert_same_slim_model, needs_mpi, run_script, sets
from tests.launchers.two_hosts import TOOLS, TwoHosts

import numpy as np
import pytest

_missing = [tool for tool in TOOLS if not shutil.which(tool)]


def may_make_namespaces() -> bool:
    """Not so in most containers, for root neither."""
    return not _missing and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.ranks,
    needs_mpi,
    pytest.mark.skipif(bool(_missing), reason=f"missing: {_missing}; apt-get install iproute2 openssh-server"),
    pytest.mark.skipif(not may_make_namespaces(), reason="network namespaces need root, outside of a container"),
]
# How each launcher is told the network.
INTERFACES = {"mpirun.sh": "10.9.0.0/24", "local.sh": "net0"}


def train(script: str, hosts: TwoHosts, workdir: Path, log: Path) -> tuple[int, str]:
    variables = hosts.variables | {"INTERFACE": INTERFACES[script]}
    return run_script(script, workdir, log, *sets(), prefix=hosts.prefix, **variables)


@pytest.mark.slow
def test_both_launchers_train_over_both_hosts_and_end_with_the_same_model(tmp_path):
    with TwoHosts() as hosts:
        for script in INTERFACES:
            code, log = train(script, hosts, tmp_path / script, tmp_path / f"{script}.log")
            assert code == 0, log[-4000:]
            assert "2 ranks on 2 host(s)" in log
    difference = assert_same_slim_model(*(tmp_path / script for script in INTERFACES))
    print(f"largest difference of a weight: {difference:.2g}")


# The ranks of both hosts have to find one another to say so.
@pytest.mark.parametrize("script", ["local.sh", pytest.param("mpirun.sh", marks=pytest.mark.slow)])
def test_a_workdir_that_the_hosts_do_not_share_is_refused(tmp_path, script):
    with TwoHosts(f"mount -t tmpfs own {tmp_path}") as hosts:
        code, log = train(script, hosts, tmp_path / "run", tmp_path / "log")
    assert code != 0 and log.count("host host2: --workdir") == 1 and "all hosts share" in log, log
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", INTERFACES)
def test_hosts_with_different_versions_are_refused(tmp_path, script):
    (metadata,) = Path(np.__file__).parents[1].glob("numpy-*.dist-info/METADATA")
    other = tmp_path / "METADATA"
    other.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.0.0\n")
    with TwoHosts(f"mount --bind {other} {metadata}") as hosts:
        code, log = train(script, hosts, tmp_path / "run", tmp_path / "log")
    expected = f"host host2: other versions than on the host of rank 0 (numpy 2.0.0 here, {np.__version__} there)"
    assert code != 0 and log.count(expected) == 1, log
