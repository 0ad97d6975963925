"""Adds the result of a part of measure.sh to results.jsonl: `record.py FOLDER PART EXIT_CODE SECONDS LIMIT_SECONDS`."""

import json
import subprocess
import sys
from pathlib import Path


def card() -> str:
    """The GPU's name and driver; what is missing says so."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "no GPU"


def figures(folder: Path, part: str) -> dict:
    """What the part has written: times of the arms, or the certificate."""
    benchmark, report = folder / part / "benchmark.json", folder / part / "slim" / "report.json"
    if benchmark.exists():
        document = json.loads(benchmark.read_text())
        return {key: document[key] for key in ("arms", "ratios") if key in document}
    if report.exists():
        return {"certificate": json.loads(report.read_text())["certificate"]}
    return {}


def main() -> None:
    folder, part = Path(sys.argv[1]), sys.argv[2]
    code, seconds, limit_seconds = map(int, sys.argv[3:])
    log = (folder / f"{part}.log").read_text(errors="replace")
    result = {
        "part": part,
        "card": card(),
        # timeout's own codes.
        "result": "done" if code == 0 else "not done in time" if code in (124, 137) else "failed",
        "exit_code": code,
        "seconds": seconds,
        "limit_seconds": limit_seconds,
        **figures(folder, part),
        "end_of_log": log.splitlines()[-3:],
    }
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
