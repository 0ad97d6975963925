"""Creates the folder of a run, or checks it against the configuration."""

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config, with_absolute_paths, with_real_paths
from resrep_dist.config.normalization import default_normalization
from resrep_dist.distributed.lease import NAME as LEASE
from resrep_dist.errors import ConfigError

_log = logging.getLogger(__name__)


def open_workdir(config: Config, workdir: Path) -> None:
    """Create the folder of a run, or check that it contains a run of the same configuration.

    Paths in its `config.yaml` are absolute, so that the run can be used from any current folder.

    Args:
        config: The configuration of the run.
        workdir: The folder.

    Raises:
        ConfigError: If a setting that influences the result differs; the folder is not changed.
    """
    path = workdir / "config.yaml"
    names = [file.name for file in workdir.iterdir()] if workdir.exists() else []
    # Hidden files may remain from a start that was killed.
    found = {name for name in names if not name.startswith(".")} - {"stop", LEASE}
    # A start that was refused leaves only its configuration, and the next one may have another.
    if found - {path.name} and path.exists():
        old, new = _deciding(config_of_run(workdir)), _deciding(config)
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


def config_of_run(workdir: Path) -> Config:
    """Read the configuration of a run.

    Args:
        workdir: Folder of the run. Runs of 0.2.0 and before have no `data.normalization`: they used ImageNet's for
            image files, and the data set's own for all other sources, whatever the model.

    Raises:
        ConfigError: If it cannot be read.
    """
    path = workdir / "config.yaml"
    config = load_config(path)
    if re.search(r"^ +normalization:", path.read_text(encoding="utf-8"), re.MULTILINE):
        return config
    scale: Any = default_normalization(config.data.source, "")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, normalization=scale))


def _deciding(config: Config) -> dict[str, Any]:
    """Return the settings that must not change within a run. Paths of data can change, since data may be moved."""
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
