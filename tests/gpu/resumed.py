"""Two ranks on one GPU: a run whose rank is killed ends as one that is not, with a certificate.

`python -m tests.gpu.resumed FOLDER`.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.ranks.launcher import REPOSITORY, start_ranks
from tests.system.runs import RESREP, assert_equal_weights, signal_one_rank

CONFIG = REPOSITORY / "tests" / "faults" / "config.yaml"
TRAIN = [RESREP, "train", str(CONFIG), "--workdir"]
LIMIT_SECONDS = 100


def finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait(LIMIT_SECONDS) != 0:
        raise SystemExit(log.read_text()[-3000:])


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    # Side by side, since most of the time the host starts programs.
    whole = start_ranks(2, [*TRAIN, str(folder / "whole")], folder / "whole.log")
    command, checkpoint = [*TRAIN, str(folder / "killed")], folder / "killed" / "checkpoints" / "step-00000100"
    signal_one_rank(signal.SIGKILL, 2, command, checkpoint, folder / "killed.log")
    again = start_ranks(2, command, folder / "again.log")
    finish(whole, folder / "whole.log")
    finish(again, folder / "again.log")
    assert "Resumed at step" in (folder / "again.log").read_text()
    assert_equal_weights(folder / "whole", folder / "killed")
    report = json.loads((folder / "whole" / "slim" / "report.json").read_text())
    print(json.dumps(report["certificate"])[:500])
    print("A killed run ended with the bits of the other one.")


if __name__ == "__main__":
    main()
