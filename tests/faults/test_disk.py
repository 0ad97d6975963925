"""A disk that is full or read-only while a run writes into it."""

import contextlib
import os
import subprocess
import time

from tests.faults.driver import Run
from tests.system.runs import assert_equal_weights

import pytest

pytestmark = [
    pytest.mark.faults, pytest.mark.ranks, pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"), 2)
    run.finish()
    return run.workdir


@contextlib.contextmanager
def small_disk(path):
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk):
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def assert_whole(workdir):
    """All checkpoints have their checksums, and nothing half written lies beside them."""
    folder = workdir / "checkpoints"
    assert not list(folder.glob("*.partial*"))
    checkpoints = sorted(folder.glob("step-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=checkpoint, check=True)
    return int(checkpoints[-1].name.removeprefix("step-"))


def test_a_full_disk_costs_checkpoints_not_training(tmp_path, tried, undisturbed):
    with small_disk(tmp_path / "disk") as disk:
        run = Run(tmp_path, 2, workdir=disk / "run")
        run.start()
        try:
            run.wait_for("prune step 100/")
            survived, start = tried("disk full, room again after one failure"), time.monotonic()
            fill(disk)
            run.wait_for(
                r"checkpoint \S*/step-\d+: cannot be written \(No space left on device\); it needs [\d,]+ bytes"
            )
            newest = assert_whole(run.workdir)
            (disk / "filler").unlink()
            run.wait_for(rf"prune step {newest + 150}/")
            assert assert_whole(run.workdir) > newest
            survived(time.monotonic() - start)
            assert run.process.wait(300) == 0, run.log[-4000:]
        finally:
            run.stop()
        assert_equal_weights(run.workdir, undisturbed)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_after_three_failures_all_ranks_stop_with_a_code_of_their_own(tmp_path, num_ranks, tried):
    with small_disk(tmp_path / "disk") as disk:
        # With room for a fourth checkpoint, whose save says that three have failed.
        run = Run(tmp_path, num_ranks, "train.num_epochs=30", workdir=disk / "run")
        run.start()
        run.wait_for("prune step 100/")
        survived, start = tried(f"disk full for three checkpoints, {num_ranks} ranks"), time.monotonic()
        fill(disk)
        seconds = run.wait_for_end(start)
        assert run.process.returncode == 6, run.log[-4000:]
        assert "3 checkpoint(s) in a row could not be written" in run.log
        assert_whole(run.workdir)
        survived(seconds)


def test_a_read_only_folder_costs_checkpoints_not_training(tmp_path, tried, undisturbed):
    run = Run(tmp_path, 2)
    folder = run.workdir / "checkpoints"
    run.start()
    try:
        run.wait_for("prune step 100/")
        # Half of one that is being written could not be deleted any more.
        while not (folder / "step-00000100").exists():
            assert run.process.poll() is None, run.log[-4000:]
            time.sleep(0.01)
        survived, start = tried("folder read-only, writable again after one failure"), time.monotonic()
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            run.wait_for(r"checkpoint \S*/step-\d+: cannot be written \(Read-only file system\); it needs [\d,]+ bytes")
            newest = assert_whole(run.workdir)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
        run.wait_for(rf"prune step {newest + 150}/")
        assert assert_whole(run.workdir) > newest
        survived(time.monotonic() - start)
        assert run.process.wait(300) == 0, run.log[-4000:]
    finally:
        run.stop()
    assert_equal_weights(run.workdir, undisturbed)
