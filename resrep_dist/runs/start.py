"""Starts a run from another one: from its base model, or from its newest state."""

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.files import CheckpointFolder
from resrep_dist.config import Config
from resrep_dist.errors import ConfigError
from resrep_dist.models.result_folder import current_folder

_log = logging.getLogger(__name__)


def from_run(config: Config, run: Path) -> Config:
    """Return a configuration that starts from the base model of another run, and trains none of its own.

    Args:
        config: The configuration of the new run.
        run: Folder of the other run. Without a base model, its final model is used.

    Raises:
        ConfigError: If it has neither.
    """
    candidates = [run / "base" / "model.h5", current_folder(run / "final") / "model.h5"]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        raise ConfigError(
            f"--from {run}: no base/model.h5 and no final/model.h5; give the folder of a run whose base is trained"
        )
    return dataclasses.replace(config, base=None, model=dataclasses.replace(config.model, weights=str(path.absolute())))


def copy_newest_state(run: Path, workdir: Path) -> None:
    """Copy the newest checkpoint of another run, if this one has none yet. The caller holds the lease of `workdir`.

    Args:
        run: Folder of the other run.
        workdir: Folder of this run.

    Raises:
        ConfigError: If the other run has no checkpoint, or was merged in its training. Nothing is copied then.
    """
    target, checkpoints = workdir / "checkpoints", CheckpointFolder(run / "checkpoints")
    if CheckpointFolder(target).newest_step() is not None:
        return
    step = checkpoints.newest_step()
    if step is None:
        raise ConfigError(f"--from {run}: it has no checkpoint; leave out --newest to start from its base model")
    if _is_merged(checkpoints.newest_position()):
        # Without compactors there are no masks: it would train to its end and miss the target.
        raise ConfigError(
            f"--from {run}: its newest checkpoint, step {step}, was merged in training and has nothing left to prune, "
            "expected one with compactors; leave out --newest to prune its base anew, or, to prune the slim model that "
            f"`resrep merge {run}` writes, leave out --from and set model.name to file:{run / 'slim' / 'model.h5'}"
        )
    name = f"step-{step:08d}"
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / f"{name}.partial", ignore_errors=True)
    shutil.copytree(run / "checkpoints" / name, target / f"{name}.partial")
    os.replace(target / f"{name}.partial", target / name)
    _log.info("Starts from step %d of %s.", step, run)


def _is_merged(position: Mapping[str, Any] | None) -> bool:
    """Return True if a checkpoint says that its model has no compactors any more. One that is damaged does not say."""
    layout = position.get("layout") if position else None
    return isinstance(layout, Mapping) and layout.get("is_merged") is True
