"""The file of all results, `benchmark.json`, with a section for each kind of benchmark."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.errors import UserError


def write_benchmark(folder: Path, sections: Mapping[str, Any]) -> Path:
    """Write sections of `benchmark.json` and keep the others.

    Args:
        folder: Folder of the file, created if it does not exist.
        sections: The sections by name, in JSON's types.

    Returns:
        The path of the file.

    Raises:
        UserError: If the file cannot be read or written.
    """
    path = folder / "benchmark.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**document, **sections}, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--output {path}: cannot be read or written ({error}); use another folder") from None
    return path
