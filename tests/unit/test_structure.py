"""The rooms of the house: imports go in one direction, and the light ones stay light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import resrep_dist

PACKAGE = Path(resrep_dist.__file__).parent
# A file imports only from files above it.
ORDER = [
    "errors", "stopping", "launch_environment", "config.schema", "config.document", "config.loading", "config",
    "macs", "presence", "watchdog", "cluster", "launch_checks", "lease", "resrep", "graph.operators",
    "graph.rebuilding", "graph.channels", "graph.kinds", "graph.joins", "graph.weighted", "graph.table",
    "graph.structure", "graph.counting", "graph.tracing", "graph", "compactor", "models.keras3", "models.archive",
    "models.architecture", "models.torch_weights", "models.files", "models.building_blocks", "models.mobilenet",
    "models.resnet_cifar", "models.resnet_imagenet", "models.vgg_cifar", "models", "data.hashing",
    "data.augmentation", "data.source", "data.order", "data.record", "data.digits", "data.synthetic", "data.npz",
    "data.cifar", "data.encoded", "data.imagefolder", "data.record_index", "data.tfrecord", "data.tfds", "data",
    "layer_replacement", "memory", "sync_batch_norm", "losses", "loss_scale", "schedules", "optimizer", "state",
    "step", "evaluation", "merging.certificate", "merging.folding", "merging.surgery", "merging", "checkpoint",
    "checkpointing", "pruner", "health", "monitor", "channel_history", "pictures", "dashboard", "step_timer",
    "curves", "keras_callbacks", "phase", "shrink", "live_model", "shrinker", "trainer", "report", "run_record",
    "report_pictures", "report_page", "run", "inference", "export", "inspection", "benchmark.files", "benchmark.data",
    "benchmark.latency", "benchmark.peak_memory", "benchmark.arms", "benchmark.layouts", "benchmark.steps",
    "benchmark.replay", "benchmark.pictures", "benchmark.plan", "benchmark", "doctor", "cli_options",
    "cli_benchmark", "cli",
]  # fmt: skip


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resrep_dist"):
            module = node.module.removeprefix("resrep_dist").removeprefix(".")
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            yield from (name if name in ORDER else module for name in names)


def test_every_file_imports_only_from_files_above_it():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").strip(".")
        if name:
            found[name] = path
    assert set(found) == set(ORDER)
    for name, path in found.items():
        for imported in filter(None, imported_modules(path)):
            assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


def test_only_the_cluster_knows_horovod_and_only_the_merge_kerassurgeon():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "import horovod" not in text or path.name in ("cluster.py", "doctor.py"), path
        assert "import kerassurgeon" not in text or path.name == "surgery.py", path


def test_the_command_line_and_the_configuration_do_not_import_tensorflow():
    code = "import sys, resrep_dist.cli, resrep_dist.config; print('tensorflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_keras_3_that_came_first_is_named():
    code = "import tensorflow as tf; tf.keras.__version__; import resrep_dist"
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "Import resrep_dist first" in result.stderr
