"""The paths in a configuration. They are relative to the current folder until a run starts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from resrep_dist.config.document import Config

_FILE = "file:"


def with_absolute_paths(config: Config) -> Config:
    """Return a configuration with absolute paths.

    Args:
        config: The configuration. `data.path`, `data.index_folder`, `model.weights`, `prune.target.costs` and the path
            in a `model.name` that starts with `file:` are relative to the current folder.
    """
    return _with_paths(config, Path.absolute)


def with_real_paths(config: Config) -> Config:
    """Return a configuration with absolute paths without symbolic links and `..`, to compare files by their paths.

    Args:
        config: As in `with_absolute_paths`.
    """
    return _with_paths(config, _resolve)


def _with_paths(config: Config, change: Callable[[Path], Path]) -> Config:
    def changed(text: str | None) -> str | None:
        return str(change(Path(text))) if text else text

    model, data = config.model, config.data
    name = model.name
    if name.startswith(_FILE):
        name = f"{_FILE}{changed(name.removeprefix(_FILE))}"
    model = dataclasses.replace(model, name=name, weights=changed(model.weights))
    data = dataclasses.replace(data, path=changed(data.path), index_folder=changed(data.index_folder))
    prune = config.prune
    if prune and prune.target and prune.target.costs:
        prune = dataclasses.replace(prune, target=dataclasses.replace(prune.target, costs=changed(prune.target.costs)))
    return dataclasses.replace(config, model=model, data=data, prune=prune)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # links that form a cycle, a name that no file can have
        return path.absolute()
