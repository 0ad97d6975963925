"""Every example in README and the documentation does what it says."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from docs.drawings.packages import ROOT
from resrep_dist.cli.main import build_parser
from resrep_dist.config import build_config, load_config
from tests.docs.examples import ARRAYS, FILES, examples, of

import pytest
from ruamel.yaml import YAML

_BASE = ROOT / "configs" / "digits_resnet20.yaml"
# A run that is over in seconds: the penalty is strong enough for rows to die.
_SHORT = '["train.num_epochs=6", "prune.lasso_strength=0.1", "logging.interval_steps=10"]'


def run(folder: Path, *programs: str) -> str:
    """Run a program in its folder, in a process of its own as a user would; what it prints."""
    script = folder / "program.py"
    script.write_text("\n".join(programs), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run([sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader of a program works: `mine.h5`, `mine.yaml` and the arrays are there."""
    path = tmp_path_factory.mktemp("reader")
    run(path, FILES)
    configuration, _ = of("yaml", "docs/own_model.md")
    (path / "mine.yaml").write_text(configuration.text, encoding="utf-8")
    return path


def setting(overrides: str) -> str:
    """What the pages `keras_fit` and `hooks` take from `own_model`: its program up to the trainer, with a short run."""
    (program,) = of("python", "docs/own_model.md")
    head, trainer, _ = program.text.partition("trainer = ")
    assert trainer and 'load_config("mine.yaml")' in head
    head = head.replace('load_config("mine.yaml")', f'load_config("mine.yaml", {overrides})')
    return ARRAYS + head


def shortened(text: str, numbers: dict[str, str]) -> str:
    """The text with other numbers; each must be in it."""
    for old, new in numbers.items():
        assert old in text, f"{old} is no longer in the example"
        text = text.replace(old, new)
    return text


def test_the_program_prunes_to_its_target(folder):
    (program,) = of("python", "docs/own_model.md")
    figures = run(
        folder,
        ARRAYS,
        program.text,
        "from tensorflow import keras",
        "saved = keras.models.load_model('slim.h5', compile=False)",
        "small, whole = resrep_dist.trace(saved).macs, graph.macs",
        "print(small.total(resrep_dist.trace(saved).widths) / whole.total(graph.widths))",
        "print(trainer.validation_top1, certificate.max_relative_difference)",
    )
    fraction, top1, difference = map(float, figures.split()[-3:])
    assert fraction <= 0.6
    assert top1 > 90
    assert difference < 1e-4


def test_one_call_prunes_to_its_target(folder):
    (program,) = of("python", "docs/quick_start.md")
    printed = run(folder, program.text, "print(result.report['slim']['macs'] / result.report['base']['macs'])")
    base, slim, fraction = map(float, printed.split()[-3:])
    assert fraction <= 0.6 and slim > base - 3
    assert "validation top-1" in printed, "a program without a console of its own shows its progress"


def test_readme_has_the_same_program():
    assert of("python", "README.md")[0].text == of("python", "docs/own_model.md")[0].text


def test_keras_fit(folder):
    (example,) = of("python", "docs/keras_fit.md")
    numbers = {
        " epochs=100": " epochs=3",
        "steps_per_epoch=100": "steps_per_epoch=20",
        "first_step=500, last_step=7000": "first_step=5, last_step=50",
        "lasso_strength=1e-3": "lasso_strength=1.0",
        "saved_step() // 100": "saved_step() // 20",
        "interval_steps=100": "interval_steps=20",
    }
    program = shortened(example.text, numbers)
    after = "print(masks.step, checkpoints.saved_step(), sum(g['kept'] for g in certificate.channels.values()))"
    step, saved, kept = map(int, run(folder, setting("[]"), program, after).split()[-3:])
    assert step == saved == 60
    assert 0 < kept < 16 + 24, "some rows have died"
    assert list((folder / "fit" / "tensorboard").rglob("events.*"))


def test_the_trackers_log_what_the_page_says(folder):
    mlflow, wandb = of("python", "docs/hooks.md")
    # Stand-ins for two services; they write down what they are told.
    (folder / "mlflow.py").write_text("told = []\ndef log_metrics(metrics, step): told.append((step, metrics))\n")
    (folder / "wandb.py").write_text(
        "told = []\n"
        "class Run:\n"
        "    def log(self, metrics, step): told.append((step, metrics))\n"
        "    def finish(self): told.append('finished')\n"
        "def init(project, config):\n"
        "    told.append(config['train']['num_epochs'])\n"
        "    return Run()\n"
    )
    run(
        folder,
        setting(_SHORT),
        mlflow.text,
        "metrics = [m for step, m in mlflow.told if set(m) >= {'loss', 'top1', 'learning_rate', 'skipped_steps'}]",
        "assert len(metrics) == trainer.step // 10, mlflow.told",
        "assert any('validation_top1' in m and 'validation_top5' in m for step, m in mlflow.told), mlflow.told",
        wandb.text,
        "trainer = resrep_dist.Trainer(model, graph, config, *data, cluster=cluster, hooks=[WandbTracker()])",
        "trainer.run()",
        "assert wandb.told[0] == 6 and wandb.told[-1] == 'finished'",
        "assert [step for step, _ in wandb.told[1:-1]] == list(range(10, trainer.step + 1, 10)), wandb.told",
    )


@pytest.mark.parametrize("example", of("yaml"), ids=str)
def test_configurations_load(example, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(example.text, encoding="utf-8")
    sections = YAML(typ="safe").load(example.text)
    if sections.keys() >= {"model", "data", "train"}:
        load_config(path)
    else:  # a part: its sections in the place of the demo's
        whole = YAML(typ="safe").load(_BASE.read_text(encoding="utf-8"))
        if "target" in sections.get("prune", {}):  # takes the place of the short form
            del whole["prune"]["target_macs_fraction"]
        build_config(whole | {name: whole.get(name, {}) | section for name, section in sections.items()})


@pytest.mark.parametrize("example", of("bash"), ids=str)
def test_commands_run(example):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = ["bash", "-euc", example.text]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "multiply-adds" in result.stdout


def test_all_commands_are_ones_that_the_parser_knows():
    lines = [line for e in examples() if e.language == "bash" for line in e.text.splitlines()]
    # What the shell does with the output is not the parser's.
    lines = [line.partition(" > ")[0] for line in lines if line.startswith("resrep ")]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert len(commands) >= 4
    for command in commands:
        build_parser().parse_args(command)  # leaves by SystemExit if it does not


def test_every_block_has_a_language_that_is_tested():
    assert {e.language for e in examples()} == {"bash", "python", "text", "yaml"}
    assert len(of("python")) >= 5 and len(of("yaml")) >= 6
