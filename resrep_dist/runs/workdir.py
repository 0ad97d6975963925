"""The folder of a run: created, or checked against the configuration."""

import logging
import os
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config, with_absolute_paths, with_real_paths
from resrep_dist.distributed.lease import NAME as LEASE
from resrep_dist.errors import ConfigError

_log = logging.getLogger(__name__)


def open_workdir(config: Config, workdir: Path) -> None:
    """Create the folder, or check that it holds a run of the same configuration.

    Its `config.yaml` gets absolute paths, so that the run can be used from any current folder.

    Raises:
        ConfigError: when what decides the result differs; the folder is left as it is.
    """
    path = workdir / "config.yaml"
    names = [file.name for file in workdir.iterdir()] if workdir.exists() else []
    # Hidden ones may be what a start left that was killed.
    found = {name for name in names if not name.startswith(".")} - {"stop", LEASE}
    # A start that was refused leaves its configuration and nothing else: the next may have another.
    if found - {path.name} and path.exists():
        old, new = _deciding(load_config(path)), _deciding(config)
        for section in ("model", "data", "base", "train", "training", "prune", "seed"):
            if old[section] != new[section]:
                raise ConfigError(
                    f"--workdir {workdir}: it holds a run with other settings; {_first_difference(section, old, new)}; "
                    "use another --workdir, or the configuration it was started with"
                )
    elif found - {path.name}:
        raise ConfigError(f"--workdir {workdir}: not empty and not a run (no config.yaml); use another folder")
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(".config.partial")
    partial.write_text(with_absolute_paths(config).to_yaml(), encoding="utf-8")
    os.replace(partial, path)


def _deciding(config: Config) -> dict[str, Any]:
    """The settings without those that may change in the middle of a run: the data may have moved."""
    settings = with_real_paths(config).to_dict()
    for key in ("path", "index_folder", "evaluation_batch_size"):
        del settings["data"][key]
    return settings


def _first_difference(section: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    before, now = old[section], new[section]
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in now if before[key] != now[key])
        section, before, now = f"{section}.{key}", before[key], now[key]
    return f"{section} is {before} there and {now} here"
