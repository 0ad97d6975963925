"""What the contracts of import-linter (`pyproject.toml`, run by `launch/test.sh`) do not say of the package."""

import os
import subprocess
import sys
from pathlib import Path

from resrep_dist.version import __version__


def test_the_command_line_and_the_configuration_do_not_import_tensorflow():
    code = "import sys, resrep_dist.cli.main, resrep_dist.config; print('tensorflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_keras_3_that_came_first_is_named():
    code = "import tensorflow as tf; tf.keras.__version__; import resrep_dist"
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "Import resrep_dist first" in result.stderr


def test_the_package_leaves_tensorflows_log_level_alone_and_the_command_line_sets_it():
    code = "import os, resrep_dist; print(os.environ.get('TF_CPP_MIN_LOG_LEVEL')); "
    code += "from resrep_dist.cli.main import main; main(['inspect', 'none.yaml']); "
    code += "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).split() == ["None", "3"]


def test_the_package_can_be_run_as_a_module():
    command = [sys.executable, "-m", "resrep_dist", "--version"]
    assert subprocess.check_output(command, text=True).startswith("resrep ")


def test_the_citation_and_the_changelog_name_this_version():
    repository = Path(__file__).parents[2]
    assert f"\nversion: {__version__}\n" in (repository / "CITATION.cff").read_text()
    assert f"\n## {__version__} (" in (repository / "CHANGELOG.md").read_text()
