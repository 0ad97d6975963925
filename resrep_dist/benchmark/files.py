"""The file of all measurements, `benchmark.json`: each kind has a section, and what is looked up most its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.errors import UserError


def write_benchmark(folder: Path, sections: Mapping[str, Any]) -> Path:
    """Put results into their sections of `benchmark.json`; the other sections stay.

    Raises:
        UserError: when the file cannot be read or written.
    """
    path = folder / "benchmark.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**document, **sections}, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--output {path}: cannot be read or written ({error}); use another folder") from None
    return path
