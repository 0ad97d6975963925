"""Two ranks on one GPU: equal state, equal runs, a flipped bit is named. `python -m tests.gpu.two_ranks FOLDER`."""

import sys
from pathlib import Path

from tests.ranks.launcher import REPOSITORY, run_ranks

import numpy as np


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    worker = str(REPOSITORY / "tests" / "ranks" / "worker.py")
    scenarios = "threads,identical,again,not_finite,flipped_bits"
    code, log = run_ranks(2, [sys.executable, worker, scenarios, str(folder)], folder / "log", timeout_seconds=85)
    print(log[-3000:])
    # The last scenario ends the ranks, as it has to.
    assert code != 0 and "the ranks hold different state" in log
    states = [dict(np.load(folder / "identical" / f"rank{rank}.npz")) for rank in range(2)]
    for name in states[0].keys() - {"first_images"}:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
    assert (folder / "not_finite" / "rank1_ended").exists() and (folder / "flipped_bits" / "rank1.txt").exists()
    print(f"{len(states[0]) - 1} arrays are equal on both ranks; runs are equal; a flipped bit was named.")


if __name__ == "__main__":
    main()
