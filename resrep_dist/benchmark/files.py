"""The file of all measurements: each kind has a section of `benchmark.json`."""

import json
from pathlib import Path
from typing import Any

from resrep_dist.errors import UserError


def write_benchmark(folder: Path, section: str, result: dict[str, Any]) -> Path:
    """Put a result into its section of `benchmark.json`; the other sections stay.

    Raises:
        UserError: when the file cannot be read or written.
    """
    path = folder / "benchmark.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document | {section: result}, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--output {path}: cannot be read or written ({error}); use another folder") from None
    return path
