"""Configurations from strangers: nothing in them runs, each is read or refused in one line, at once."""

import dataclasses
import json
import math
import random
import time
import tracemalloc

from resrep_dist.config import Config, build_config, load_config
from resrep_dist.errors import ConfigError
from tests.networks import DIGITS_CONFIG

import pytest
from ruamel.yaml import YAML

CONFIGS = sorted(DIGITS_CONFIG.parent.glob("*.yaml"))
DIGITS = DIGITS_CONFIG.read_text()


def refused(path):
    """The error's text; it is one line that a terminal can show."""
    with pytest.raises(ConfigError) as error:
        load_config(path)
    text = str(error.value)
    assert text.isprintable() and len(text) < 1000, text
    return text


def bomb(entry):
    """Nine levels of nine aliases each, 387 million values written out."""
    lines = [f"x0: &x0 {entry}"]
    lines += [f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]" for level in range(1, 10)]
    return "\n".join(lines)


def merge_bomb():
    lines = ["x0: &x0 {a: 1}"]
    lines += [f"x{level}: &x{level} {{<<: [{', '.join([f'*x{level - 1}'] * 9)}]}}" for level in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("seed: !!python/object/apply:os.mkdir ['{ran}']", "not valid YAML: could not determine a constructor"),
        ("seed: !!python/object/new:os.mkdir ['{ran}']", "could not determine a constructor"),
        ("!!python/object/apply:subprocess.run [[mkdir, '{ran}']]", "could not determine a constructor"),
        ("seed: !!python/name:os.mkdir", "could not determine a constructor"),
        ("seed: !!python/module:os", "could not determine a constructor"),
        ("seed: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{ran}']", "could not determine a constructor"),
        ("seed: !exec mkdir {ran}", "could not determine a constructor"),
        (bomb("lol"), "more than 100,000 values, aliases written out"),
        (bomb("[a, b, c]"), "more than 100,000 values"),
        (merge_bomb(), "more than 100,000 values"),
        ("train: &train [*train]", "line 1: not valid YAML: an alias inside of what it stands for"),
        ("train: &train\n  base: {{<<: *train}}", "line 2: not valid YAML: an alias inside"),
        ("seed: *nothing", "found undefined alias"),
        ("[" * 100_000, "nested deeper than 20 levels"),
        ("{a: " * 50_000, "nested deeper than 20 levels"),
        ("- " * 100_000, "nested deeper than 20 levels"),
        ("\n".join(" " * level + "a:" for level in range(600)), "nested deeper than 20 levels"),
        ("seed: \0", "special characters are not allowed"),
        ("seed: 1\nseed: 2", "found duplicate key"),
        ("train: {a: 1, a: 2}", "found duplicate key"),
        ("seed: " + "9" * 5000, "Exceeds the limit (4300"),
        ("seed: 0x" + "f" * 50_000, "Exceeds the limit"),
        ("seed: 1e99999", "seed"),
        ("seed: 100000000000000000000000000", "expected less than 1073741824"),
        ("seed: -.inf", "seed: received -inf"),
        ("model: .nan", "model: received nan"),
        ("? [a, b]\n: 3", "keys must be str"),
        ("2001-01-01: 3", "keys must be str"),
        ("seed: !!timestamp never", "failed to construct timestamp"),
        ("seed: !!bool maybe", "not valid YAML"),
        ("seed: !!binary a", "not valid YAML"),
        ('seed: "\\ud800"', "text that is not Unicode"),
        ('"\\e[2J\\a\\n": 3', r"\x1b[2J\x07"),
        ('seed: "' + "\\n" * 9000 + '"', "seed: received"),
        ("? " + "a" * 200_000 + "\n: 1", "unknown key"),
        ("seed: !!set {? a, ? b}", "seed: received"),
        ("", "received None"),
        ("just text", "received 'just text'"),
        ("- a list", "received ['a list']"),
        ("--- {}\n--- {}", "found another document"),
        ("%YAML 9.9\n---\nseed: 1", "not valid YAML"),
        ("# " + "x" * 300_000, "more than 262,144 bytes"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) and value.isprintable() else "text",
)
def test_a_malicious_file_is_refused_in_one_line_and_nothing_in_it_runs(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    # Behind a good configuration, so that nothing else is wrong with it, where it may stand there.
    good = "\n".join(line for line in DIGITS.splitlines() if not line.startswith("seed"))
    text = text.replace("{ran}", str(tmp_path / "ran")).replace("{{", "{").replace("}}", "}")
    for whole in (text, f"{good}\n{text}" if text.startswith(("seed", '"', "?", "2001")) else text):
        path.write_text(whole)
        tracemalloc.start()
        start = time.process_time()
        message = refused(path)
        assert time.process_time() - start < 10
        assert tracemalloc.get_traced_memory()[1] < 200e6
        tracemalloc.stop()
        assert not (tmp_path / "ran").exists()
    assert expected in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00s", b"seed: \xc3(", b"\x80\x04\x95cos\nmkdir\n"])
def test_bytes_that_are_no_text_are_refused(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    assert "config.yaml" in refused(tmp_path / "config.yaml")


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("loop", "nothing\0", "."):
        assert "cannot be read" in refused(tmp_path / name)
    assert "more than 262,144 bytes" in refused(tmp_path / "device")


def test_aliases_of_ordinary_size_are_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(DIGITS.replace("base:\n", "base: &phase\n").replace("train:\n", "train:\n  <<: *phase\n"))
    config = load_config(path)
    assert config.train.warmup_epochs == config.base.warmup_epochs == 2


STRANGE = [
    None, True, False, 0, -1, 1, 3, 2**31, -(2**63), 10**30, 0.0, -0.5, 0.5, 1.0, 1e308, 1e-320, math.inf, -math.inf,
    math.nan, "", "a", "1", "0.5", "true", "null", "~", "é", "\n", "\x1b[31m", "a" * 3000, "!!python/name:os.system",
    "$(mkdir ran)", "../../etc/passwd", "python:os:system", "file:/etc/passwd", [], [1], [[]], ["a", 1, None], {},
    {"a": 1}, {"": {}}, {"learning_rate": {"learning_rate": 1}}, [0.1] * 40,
]  # fmt: skip


def mutate_document(document, choices):
    """One change of a value, a key or the structure, somewhere in it."""
    here, key = {"": document}, ""
    while isinstance(here[key], dict) and here[key] and (key == "" or choices.random() < 0.7):
        here, key = here[key], choices.choice(list(here[key]))
    change = choices.choice(["value", "value", "value", "key", "remove", "wrap", "move", "near"])
    if change == "value":
        here[key] = choices.choice(STRANGE)
    elif change == "key":
        here[choices.choice([f"{key}s", key[:-1], key.upper(), "", "__class__", "seed", "prune", "\x00"])] = here[key]
    elif change == "remove":
        del here[key]
    elif change == "wrap":
        here[key] = choices.choice([[here[key]], {key: here[key]}, str(here[key])])
    elif change == "move":
        document[choices.choice(list(document))] = here[key]
    elif isinstance(here[key], int | float):
        here[key] *= choices.choice([-1, 0, 0.5, 2, 1e6, 1e-6])


def mutate_bytes(data, choices):
    """One change of the text, whatever it means."""
    data = bytearray(data)
    start = choices.randrange(len(data))
    length = choices.choice([1, 1, 2, 8, 64])
    change = choices.choice(["flip", "set", "delete", "insert", "repeat", "cut", "swap"])
    if change == "flip":
        data[start] ^= 1 << choices.randrange(8)
    elif change == "set":
        data[start : start + length] = choices.randbytes(length)
    elif change == "delete":
        del data[start : start + length]
    elif change == "insert":
        data[start:start] = choices.choice(
            [
                b":",
                b"- ",
                b"\n",
                b"  ",
                b"{",
                b"]",
                b"&a ",
                b"*a ",
                b"!!",
                b"|\n",
                b"'",
                b'"',
                b"%",
                b"\t",
                b"? ",
                b"<<: ",
            ]
        )
    elif change == "repeat":
        data[start:start] = data[start : start + length] * choices.choice([1, 3, 50])
    elif change == "cut":
        del data[start:]
    else:
        lines = data.split(b"\n")
        a, b = choices.randrange(len(lines)), choices.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
        data = bytearray(b"\n".join(lines))
    return bytes(data)


def mutated_text(choices):
    data = choices.choice(CONFIGS).read_bytes()
    for _ in range(choices.choice([1, 1, 2, 4])):
        data = mutate_bytes(data, choices) if data else data
    return data


def mutated_document(choices):
    document = json.loads(choices.choice(DOCUMENTS))
    for _ in range(choices.choice([1, 1, 2, 4])):
        if document:
            mutate_document(document, choices)
    return document


DOCUMENTS = [json.dumps(YAML(typ="safe", pure=True).load(path.read_text())) for path in CONFIGS]


def test_2000_mutated_configurations_are_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    num_read, messages = 0, set()
    for number in range(2000):
        choices = random.Random(number)
        start = time.process_time()
        try:
            if number % 2:
                config = build_config(mutated_document(choices), str(path))
            else:
                path.write_bytes(mutated_text(choices))
                config = load_config(path)
        except ConfigError as error:
            text = str(error)
            assert text.isprintable() and len(text) < 1000, (number, text)
            messages.add(text.removeprefix(str(path))[:40])
        else:
            num_read += 1
            assert isinstance(config, Config), number
            assert build_config(dataclasses.asdict(config)) == config, number
        assert time.process_time() - start < 5, number
    # It would prove little if all were alike.
    assert 250 < num_read < 1500 and len(messages) > 200, (num_read, len(messages))
    assert not (tmp_path / "ran").exists()
