"""A process killed while it writes checkpoints, again and again: the newest complete one is found every time."""

import os
import random
import signal
import subprocess
import sys
import time

from resrep_dist.checkpoints.files import CheckpointFolder

import numpy as np
import pytest
import tensorflow as tf

WRITER = """
import sys, resrep_dist, numpy as np
from pathlib import Path
from resrep_dist.checkpoints.files import CheckpointFolder
folder = CheckpointFolder(Path(sys.argv[1]))
for step in range(1, 10**6):
    folder.save(step, {"a": np.full(20_000, step)}, {"num_chosen": 0})
    print(step, flush=True)
"""


@pytest.mark.parametrize("num_kills", [5, pytest.param(100, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])])
def test_killed_at_any_moment_the_newest_complete_one_is_found(tmp_path, num_kills, tried):
    choices = random.Random(0)
    for number in range(num_kills):
        folder = tmp_path / str(number)
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as writer:
            seen = int(writer.stdout.readline())
            time.sleep(choices.uniform(0, 0.2))
            survived = tried("killed while checkpoints are being written")
            os.kill(writer.pid, signal.SIGKILL)
            seen = int((writer.stdout.read().split() or [seen])[-1])
        start = time.monotonic()
        array = tf.Variable(np.zeros(20_000, np.int64))
        position = CheckpointFolder(folder).restore_newest({"a": array})
        # The one that was under way may have been finished and not yet told.
        assert position["step"] in (seen, seen + 1)
        assert set(array.numpy()) == {position["step"]}
        survived(time.monotonic() - start)
