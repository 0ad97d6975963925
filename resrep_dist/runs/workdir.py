"""Creates the folder of a run, or checks it against the configuration."""

import dataclasses
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, PruneConfig, load_config, with_absolute_paths, with_real_paths
from resrep_dist.config.normalization import default_normalization
from resrep_dist.distributed.lease import NAME as LEASE
from resrep_dist.errors import ConfigError
from resrep_dist.pruning.goals import with_checksum

_log = logging.getLogger(__name__)
COSTS = "costs.json"
"""Name of the copy of the table of times in a run's folder, so that the run does not depend on the original."""


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
    found = {name for name in names if not name.startswith(".")} - {"stop", LEASE, COSTS}
    # A start that was refused leaves only its configuration, and the next one may have another.
    if found - {path.name} and path.exists():
        _require_same_run(config_of_run(workdir), config, workdir)
    elif found - {path.name}:
        raise ConfigError(f"--workdir {workdir}: not empty and not a run (no config.yaml); use another folder")
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(".config.partial")
    partial.write_text(with_absolute_paths(config).to_yaml(), encoding="utf-8")
    os.replace(partial, path)
    costs = config.prune.goal.costs if config.prune else None
    if costs and Path(costs).resolve() != (workdir / COSTS).resolve():
        shutil.copyfile(costs, workdir / COSTS)


def with_costs_of_run(config: Config, workdir: Path) -> Config:
    """Return a configuration that names the copy in the folder of a run if its table of times is gone.

    Only of a run that has begun: what a refused start left may be of another table.

    Args:
        config: A configuration for the run.
        workdir: Folder of the run.
    """
    named, copy = config.prune.goal.costs if config.prune else None, (workdir / COSTS).absolute()
    has_begun = any((workdir / name).exists() for name in ("base", "checkpoints"))
    if named is None or os.path.exists(named) or not has_begun or not copy.exists():
        return config
    _log.info("prune.target.costs: %s is gone; the run goes on with its copy, %s.", named, copy)
    return _with_target(config, costs=str(copy))


def config_of_run(workdir: Path) -> Config:
    """Read the configuration of a run.

    Args:
        workdir: Folder of the run. The table of times that its target names is the copy there. Runs of 0.2.0 and before
            have no `data.normalization`: they used ImageNet's for image files, and the data set's own for all other
            sources, whatever the model.

    Raises:
        ConfigError: If it cannot be read.
    """
    path = workdir / "config.yaml"
    config = load_config(path)
    if (workdir / COSTS).exists():
        config = _with_target(config, costs=str((workdir / COSTS).absolute()))
    if re.search(r"^ +normalization:", path.read_text(encoding="utf-8"), re.MULTILINE):
        return config
    scale: Any = default_normalization(config.data.source, "")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, normalization=scale))


def earlier_choices(config: Config, workdir: Path) -> dict[str, Any]:
    """Return the numbers that an earlier start of a run chose for settings given as `auto`.

    Another version may choose others, and a run keeps its own.

    Args:
        config: The configuration of this start.
        workdir: Folder of the run.

    Returns:
        The numbers by the names of settings in `prune`; empty if the folder has no run yet.
    """
    if not any((workdir / name).exists() for name in ("base", "checkpoints")):
        return {}  # a start that was refused leaves only its configuration, and this one may have another
    try:
        prune = config_of_run(workdir).prune
    except ConfigError:
        return {}  # none yet, or `open_workdir` will say what is wrong with it
    names = [field.name for field in dataclasses.fields(PruneConfig)] if config.prune and prune else []
    numbers = {name: getattr(prune, name) for name in names if getattr(config.prune, name) == "auto"}
    return {name: number for name, number in numbers.items() if number != "auto"}


def is_same_run(config: Config, workdir: Path) -> bool:
    """Return True if a folder holds a run whose recorded configuration is this one, with absolute paths.

    Args:
        config: The configuration of this start.
        workdir: The folder.
    """
    try:
        old = config_of_run(workdir)
    except ConfigError:
        return False
    if config.prune is not None and old.prune is not None:
        prune = with_checksum(dataclasses.replace(config.prune, **earlier_choices(config, workdir)))
        config = dataclasses.replace(config, prune=prune)
    # The checksum tells tables apart, wherever they are.
    old, config = (_with_target(each, costs=COSTS) for each in (old, with_absolute_paths(config)))
    return old == config


def _with_target(config: Config, **values: Any) -> Config:
    """Return a configuration with other values of its target, if that names a table of times."""
    if config.prune is None or config.prune.target is None or config.prune.target.costs is None:
        return config
    target = dataclasses.replace(config.prune.target, **values)
    return dataclasses.replace(config, prune=dataclasses.replace(config.prune, target=target))


def _require_same_run(old: Config, config: Config, workdir: Path) -> None:
    before, now = _deciding(old), _deciding(config)
    if now["train"]["num_epochs"] > before["train"]["num_epochs"]:
        _log.info(
            "The run is extended from %g to %g epochs; its learning rate follows the longer schedule from here on.",
            before["train"]["num_epochs"],
            now["train"]["num_epochs"],
        )
        before["train"]["num_epochs"] = now["train"]["num_epochs"]
    for section in ("task", "model", "data", "base", "train", "training", "prune", "seed"):
        if before[section] != now[section]:
            raise ConfigError(
                f"--workdir {workdir}: it holds a run with other settings; {_first_difference(section, before, now)}; "
                f"to go on with it use the configuration it was started with (train.num_epochs may be raised); to "
                f"start from its model with these settings use another --workdir and --from {workdir}"
            )


def _deciding(config: Config) -> dict[str, Any]:
    """Return the settings that must not change within a run. Paths of files can change, since they may be moved."""
    settings = with_real_paths(config).to_dict()
    for key in ("path", "index_folder", "evaluation_batch_size"):
        del settings["data"][key]
    if settings["prune"] and settings["prune"]["target"]:
        del settings["prune"]["target"]["costs"]  # its checksum counts
    if settings["prune"]:
        del settings["prune"]["min_base_top1"]  # decides only whether it starts
    return settings


def _first_difference(section: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    before, now = old[section], new[section]
    while isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in now if before[key] != now[key])
        section, before, now = f"{section}.{key}", before[key], now[key]
    return f"{section} is {before} there and {now} here"
