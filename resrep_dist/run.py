"""A whole run in its folder: base model, pruning, merge, report."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resrep_dist.checkpoint import CheckpointFolder
from resrep_dist.cluster import Cluster
from resrep_dist.compactor import insert_compactors, live_graph, training_macs
from resrep_dist.config import Config, load_config
from resrep_dist.curves import check_heat_maps
from resrep_dist.data import load_sources
from resrep_dist.data.source import ImageSource
from resrep_dist.errors import CheckpointError, ConfigError, ModelError
from resrep_dist.evaluation import Evaluator
from resrep_dist.graph import Graph, copy_weights, trace
from resrep_dist.health import problems_of
from resrep_dist.launch_checks import check_launch
from resrep_dist.lease import NAME as LEASE
from resrep_dist.lease import hold_lease
from resrep_dist.merging import certify, check_certificate, dead_channels, merge
from resrep_dist.models import build_model
from resrep_dist.models.files import load_model, load_weights, save_model
from resrep_dist.phase import check_images
from resrep_dist.pruner import require_prunable, require_reachable_target
from resrep_dist.report import count_parameters, measure_latencies
from resrep_dist.shrink import Layout, at_layout
from resrep_dist.state import model_variables
from resrep_dist.stopping import StopRequest
from resrep_dist.trainer import Trainer

import tensorflow as tf
from rich.console import Console
from tensorflow import keras

_log = logging.getLogger(__name__)


def train(config: Config, workdir: Path, cluster: Cluster, console: Console | None) -> dict[str, Any]:
    """Run everything that is not done yet in `workdir`; returns the report. A collective.

    Args:
        console: where progress is shown; none: nowhere.
    """
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    check_launch(cluster, workdir)
    with hold_lease(workdir, cluster), StopRequest(workdir if cluster.is_root else None) as stop:
        # What one host lacks must not leave the others waiting.
        model = cluster.everywhere(lambda: build_model(config.model))
        graph = trace(model, config.prune.exclude, config.prune.residual_groups) if config.prune else None
        if graph and config.prune:
            # Before a base is trained for nothing.
            require_prunable(model, graph)
            require_reachable_target(graph, config.prune)
            check_heat_maps(config, graph)
        cluster.from_root(lambda: open_workdir(config, workdir))
        train_data, validation_data = cluster.everywhere(lambda: load_sources(config))
        cluster.everywhere(lambda: check_images(model, train_data))
        cluster.from_root(lambda: _check_file(model, workdir))
        setting = {
            "train_data": train_data,
            "validation_data": validation_data,
            "cluster": cluster,
            "workdir": workdir,
            "console": console,
        }
        if graph:
            _obtain_base(model, config, stop, setting)
        elif config.model.weights is not None:
            cluster.from_root(lambda: load_weights(model, Path(str(config.model.weights))))
        Trainer(model, graph, config, **setting).run(stop)
        return cluster.from_root(
            lambda: merge_run(workdir, validation_data) if graph else save_final(workdir, validation_data)
        )


def open_workdir(config: Config, workdir: Path) -> None:
    """Make the folder, or check that it holds a run of the same configuration.

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
    partial.write_text(config.to_yaml(), encoding="utf-8")
    os.replace(partial, path)


def merge_run(workdir: Path, validation_data: ImageSource | None = None) -> dict[str, Any]:
    """Merge the newest checkpoint of a run into `slim/`, measure, write the report; on one process.

    Args:
        validation_data: that of the run, where it is open already.

    Raises:
        CertificateError: when the slim model's outputs differ; nothing is written then.
    """
    config = load_config(workdir / "config.yaml")
    if config.prune is None:
        raise ConfigError(f"{workdir}: a run without the section `prune` has nothing to merge; see {workdir}/final")
    base = build_model(config.model)
    graph = trace(base, config.prune.exclude, config.prune.residual_groups)
    load_weights(base, workdir / "base" / "model.h5")
    trained = _load_trained(base, graph, workdir)
    validation_data = validation_data or load_sources(config)[1]
    images = validation_data.first_images(config.merge.num_images)
    dead_row_norm = config.prune.dead_row_norm
    slim, certificate = merge(trained, graph, images, tolerance=config.merge.tolerance, dead_row_norm=dead_row_norm)
    partial = _empty_folder(workdir / "slim.partial")
    save_model(slim, partial / "model.h5")
    save_model(trained, partial / "trained.h5")
    # What is certified is the file.
    slim = load_model(partial / "model.h5")
    certificate = certify(trained, slim, images, certificate.channels)
    check_certificate(certificate, config.merge.tolerance)
    models = {"base": base, "trained": trained, "slim": slim}
    files = {
        "base": workdir / "base/model.h5",
        "trained": partial / "trained.h5",
        "slim": partial / "model.h5",
    }
    slim_graph = trace(slim)
    macs = {
        "base": graph.macs.total(graph.widths),
        "trained": training_macs(trained, graph, live_graph(trained, graph).widths),
        "slim": slim_graph.macs.total(slim_graph.widths),
    }
    report = _measure(models, files, macs, validation_data, config) | {
        "model": config.model.name,
        "target_macs_fraction": config.prune.target_macs_fraction,
        "target_missed": macs["slim"] > config.prune.target_macs_fraction * macs["base"],
        "num_masked_alive": _count_masked_alive(trained, graph, dead_row_norm),
        "certificate": vars(certificate),
    }
    report["problems"] = problems_of(report, config.model.num_classes)
    _publish(report, partial, workdir / "slim")
    return report


def save_final(workdir: Path, validation_data: ImageSource) -> dict[str, Any]:
    """Write the model of a run without pruning to `final/`, measure, write the report; on one process."""
    config = load_config(workdir / "config.yaml")
    model = build_model(config.model)
    _restore_newest(workdir, model_variables(model))
    partial = _empty_folder(workdir / "final.partial")
    save_model(model, partial / "model.h5")
    try:
        graph = trace(model)
        macs = graph.macs.total(graph.widths)
    except ModelError:
        # What cannot be traced cannot be pruned, but it can be trained.
        macs = None
    report = _measure({"final": model}, {"final": partial / "model.h5"}, {"final": macs}, validation_data, config)
    report["model"] = config.model.name
    report["problems"] = problems_of(report, config.model.num_classes)
    _publish(report, partial, workdir / "final")
    return report


def _check_file(model: keras.Model, workdir: Path) -> None:
    """Refuse a model now that could be trained, but whose file could not be read at the end."""
    path = workdir / ".untrained.h5"
    try:
        save_model(model, path)
        load_model(path)
    except ModelError as error:
        raise ModelError(f"model {model.name}: it could not be loaded from its own file: {error}") from None
    finally:
        path.unlink(missing_ok=True)


def _obtain_base(model: keras.Model, config: Config, stop: StopRequest, setting: dict[str, Any]) -> None:
    """Give `model` the base weights on all ranks: those of an earlier start, of a file, or newly trained."""
    cluster: Cluster = setting["cluster"]
    path = setting["workdir"] / "base" / "model.h5"
    weights = config.model.weights
    if cluster.from_root(path.exists):
        cluster.from_root(lambda: load_weights(model, path))
    elif weights is not None:
        cluster.from_root(lambda: load_weights(model, Path(weights)))
    elif config.base is not None:
        trainer = Trainer(model, None, config, **setting)
        trainer.run(stop)
        copy_weights(trainer.model, model)
    cluster.broadcast(model.weights)
    if not cluster.from_root(path.exists):
        cluster.from_root(lambda: save_model(model, path))


def _load_trained(base: keras.Model, graph: Graph, workdir: Path) -> keras.Model:
    trained = whole = insert_compactors(base, graph)
    variables: dict[str, tf.Variable] = {}

    def lay_out(position: dict[str, Any]) -> None:
        nonlocal trained
        trained = at_layout(whole, graph, Layout.of(graph, position.get("layout")))
        variables.clear()
        variables.update(model_variables(trained))

    _restore_newest(workdir, variables, lay_out)
    return trained


def _restore_newest(
    workdir: Path,
    variables: dict[str, tf.Variable],
    prepare: Callable[[dict[str, Any]], None] = lambda position: None,
) -> None:
    checkpoints = CheckpointFolder(workdir / "checkpoints")
    if checkpoints.restore_newest(variables, is_whole=False, prepare=prepare) is None:
        raise CheckpointError(f"{workdir}: no checkpoint; `resrep train` writes them")


def _empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _publish(report: dict[str, Any], partial: Path, target: Path) -> None:
    (partial / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def _measure(
    models: dict[str, keras.Model],
    files: dict[str, Path],
    macs: Mapping[str, int | None],
    validation_data: ImageSource,
    config: Config,
) -> dict[str, Any]:
    latencies = measure_latencies(models, validation_data.first_images(1)[0])
    batch_size = config.data.evaluation_batch_size
    return {
        name: {
            **Evaluator(model, config.training.metrics).evaluate(validation_data, batch_size),
            "macs": macs[name],
            "parameters": count_parameters(model),
            "latency_ms": latencies[name],
            "file_bytes": files[name].stat().st_size,
        }
        for name, model in models.items()
    }


def _count_masked_alive(trained: keras.Model, graph: Graph, dead_row_norm: float) -> int:
    dead = dead_channels(trained, graph, dead_row_norm)
    masks = [trained.get_layer(group.layers[0].compactor).mask.numpy() for group in graph.groups]
    num_masked = sum(int((mask == 0).sum()) for mask in masks)
    return num_masked - sum(group.num_parts * len(dead[group.name]) for group in graph.groups)


def _deciding(config: Config) -> dict[str, Any]:
    """The settings without those that may change in the middle of a run: the data may have moved."""
    settings = config.to_dict()
    for key in ("path", "index_folder", "evaluation_batch_size"):
        del settings["data"][key]
    return settings


def _first_difference(section: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    before, now = old[section], new[section]
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in now if before[key] != now[key])
        section, before, now = f"{section}.{key}", before[key], now[key]
    return f"{section} is {before} there and {now} here"
