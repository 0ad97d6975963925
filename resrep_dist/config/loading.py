"""YAML -> Config. Every error is one line: what was received, where, what was expected."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from resrep_dist.config.schema import Config
from resrep_dist.errors import ConfigError

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides.

    Raises:
        ConfigError: for a missing file, text that is not YAML, an unknown key, a wrong type or an
            impossible value; one line that says what, where and what was expected.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"config {path}: cannot be read ({reason}); give the path of a YAML file") from None
    document = _parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError(f"config {path}: expected sections like `model:` and `train:`, received {document!r}")
    for override in overrides:
        _apply_override(document, override)
    return build_config(document, str(path))


def build_config(document: dict[str, Any], origin: str = "config") -> Config:
    """Validate plain dicts as a Config; `origin` stands at the head of the error."""
    try:
        # Strict validation takes sections from JSON only; YAML's dates become text on the way.
        return TypeAdapter(Config).validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_describe(error.errors()[0])}") from None


def _parse_yaml(text: str, origin: str) -> Any:
    # The safe loader in pure Python: YAML 1.2, no tags that build objects, a key given twice is an error.
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ConfigError(f"{origin}{place}: not valid YAML: {' '.join(str(problem).split())}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: expected section.key=value, as in --set train.num_epochs=10")
    section = document
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: `{part}` is a value, not a section")
    section[parts[-1]] = _parse_yaml(text, f"--set {override}")


def _describe(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    received = error["input"]
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _describe_unknown_key(error["loc"])
    if error["type"] in ("missing", "missing_argument"):
        return f"{place}: missing; expected {_expected_type(error['loc'])}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if error["type"].startswith("dataclass"):
        expected = "a section with keys below it"
    return f"{place}: received {received!r}, expected {expected}"


def _describe_unknown_key(location: tuple[Any, ...]) -> str:
    section = _type_at(location[:-1])
    names = [field.name for field in dataclasses.fields(section)] if section else []
    near = difflib.get_close_matches(str(location[-1]), names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(names)}"
    return f"{'.'.join(map(str, location))}: unknown key; {hint}"


def _type_at(location: tuple[Any, ...]) -> Any:
    current: Any = Config
    for part in location:
        hints = typing.get_type_hints(current)
        current = hints.get(str(part))
        if typing.get_origin(current) in (typing.Union, types.UnionType):
            current = next(arg for arg in typing.get_args(current) if arg is not type(None))
        if current is None or not dataclasses.is_dataclass(current):
            return None
    return current


def _expected_type(location: tuple[Any, ...]) -> str:
    section = _type_at(location[:-1])
    hint = typing.get_type_hints(section).get(str(location[-1])) if section else None
    if dataclasses.is_dataclass(hint):
        return "a section with keys " + ", ".join(field.name for field in dataclasses.fields(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return f"a value of type {getattr(hint, '__name__', hint)}"
