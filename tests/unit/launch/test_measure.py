"""tests/gpu/measure.sh around a stand-in for Python: each part is bounded, and its result is there when it ends."""

import json
import os
import re
import subprocess

from tests.ranks.launcher import REPOSITORY

# Trains, measures, fails and hangs by what it is asked for.
PYTHON = """#!/bin/bash
echo "$*"
case "$*" in
    *xla=true*) echo broken; exit 3 ;;
    *mixed_float16*resrep,slim*) sleep 60 ;;
    *"benchmark steps"*)
        mkdir -p "${@: -1}"
        echo '{"arms": {"plain": {"step_ms_median": 5.0}}, "ratios": {}}' >"${@: -1}/benchmark.json" ;;
esac
"""
AT_ONCE = "tests ranks resumed demo"
ALONE = "float32 rounded mixed_float16 rounded_float16 gaps"
LONGER = "mixed_bfloat16 free xla costs"


def test_each_part_is_bounded_and_written_down_when_it_ends(tmp_path):
    python, script = tmp_path / "python", (REPOSITORY / "tests" / "gpu" / "measure.sh").read_text()
    python.write_text(PYTHON)
    python.chmod(0o755)
    # Beside the script as in the repository, with another limit for the part that hangs.
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "record.py").write_text((REPOSITORY / "tests" / "gpu" / "record.py").read_text())
    assert "steps mixed_float16 120 " in script
    (folder / "measure.sh").write_text(script.replace("steps mixed_float16 120 ", "steps mixed_float16 1 "))
    process = subprocess.run(
        ["bash", str(folder / "measure.sh"), "measured"],
        env={**os.environ, "PYTHON": str(python), "PARTS": f"{AT_ONCE} {ALONE} {LONGER}"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    results = [json.loads(line) for line in process.stdout.splitlines()]
    by_name = {result["part"]: result for result in results}
    assert set(list(by_name)[:4]) == set(AT_ONCE.split()), "these run at once"
    assert list(by_name)[4:] == f"{ALONE} {LONGER}".split(), process.stderr
    assert {name: result["result"] for name, result in by_name.items() if result["result"] != "done"} == {
        "mixed_float16": "not done in time", "xla": "failed"
    }  # fmt: skip
    assert (
        by_name["float32"]["arms"] == {"plain": {"step_ms_median": 5.0}} and by_name["xla"]["end_of_log"][1] == "broken"
    )
    assert "data.source=synthetic" in by_name["free"]["end_of_log"][0] and by_name["tests"]["card"]
    assert f"{AT_ONCE} {ALONE}}}" in script, "what runs if no parts are named"
    calls = re.findall(r"^(?:part|steps) (\w+) (\d+)", script, re.MULTILINE)
    limits = {name: int(seconds) for name, seconds in calls}
    assert limits.keys() == by_name.keys()
    assert re.findall(r"^part (\w+) .*&$", script, re.MULTILINE) == AT_ONCE.split() and "&\nwait\n" in script
    assert max(limits[name] for name in AT_ONCE.split()) + sum(limits[name] for name in ALONE.split()) <= 540
    assert sum(limits[name] for name in LONGER.split()) <= 780, "thirteen minutes, as it says"
