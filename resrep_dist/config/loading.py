"""Reads a configuration from YAML. Every error is one line: what was received, where, and what was expected."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from resrep_dist.config.document import Config, check_start
from resrep_dist.config.normalization import ChannelStatistics
from resrep_dist.errors import ConfigError, one_line

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.events import AliasEvent

_MAX_BYTES = 1 << 18
_MAX_DEPTH = 20
_MAX_VALUES = 100_000
_MAX_MESSAGE = 600
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")


def load_config(path: str | Path, overrides: Sequence[str] = (), *, to_start: bool = True) -> Config:
    """Read a configuration from a YAML file. No code in the file is run.

    Args:
        path: The file.
        overrides: Settings that replace those of the file, as `section.key=value`, with YAML values.
        to_start: False to accept a configuration with which a run could not start, since its model has no weights.

    Raises:
        ConfigError: If the file is missing or is not YAML, or has an unknown key, a wrong type or an invalid value.
    """
    return parse_config(_read(Path(path)), str(path), overrides, to_start=to_start)


def parse_config(text: str, origin: str, overrides: Sequence[str] = (), *, to_start: bool = True) -> Config:
    """Read a configuration from the text of a YAML file.

    Args:
        text: The text.
        origin: Where it comes from, as the beginning of an error.
        overrides: As in `load_config`.
        to_start: As in `load_config`.

    Raises:
        ConfigError: As in `load_config`, but for a missing file.
    """
    document = _parse_yaml(text, origin)
    if not isinstance(document, dict):
        raise _error(
            f"config {origin}: expected sections like `model:` and `train:`, received {one_line(repr(document))}"
        )
    for override in overrides:
        _apply_override(document, override)
    return build_config(document, origin, to_start=to_start)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what overrides say, as nested dicts whose names and values are not checked.

    Args:
        overrides: As in `load_config`.

    Raises:
        ConfigError: If one is not `section.key=value`, or its value is not YAML.
    """
    document: dict[str, Any] = {}
    for override in overrides:
        _apply_override(document, override)
    return document


def read_settings(settings: object) -> dict[str, Any]:
    """Return the settings that a program gives, as nested dicts whose names and values are not checked.

    Args:
        settings: Sections by name, with Python's or NumPy's numbers; None for none.

    Raises:
        ConfigError: If they are no sections.
    """
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise _error(
            f"settings: received {one_line(repr(settings))}, expected a dict of sections, as in "
            "{'train': {'learning_rate': 0.02}}"
        )
    document: dict[str, Any] = json.loads(_json_of(settings, "settings"))
    return document


def build_config(document: Mapping[str, Any], origin: str = "config", *, to_start: bool = True) -> Config:
    """Create a configuration from nested dicts.

    Args:
        document: Sections and their values.
        origin: Where they come from, as the beginning of an error.
        to_start: As in `load_config`.

    Raises:
        ConfigError: If there is an unknown key, a wrong type or an invalid value.
    """
    try:
        # Strict validation accepts sections only as JSON.
        config: Config = TypeAdapter(Config).validate_json(_json_of(document, origin))
    except ValidationError as error:
        raise _error(f"{origin}: {_describe(min(_of_one_branch(error.errors()), key=_is_no_unknown_key))}") from None
    try:
        if to_start:
            check_start(config)
    except ValueError as error:
        raise _error(f"{origin}: {error}") from None
    return config


def _json_of(document: Any, origin: str) -> str:
    try:
        return json.dumps(document, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise _error(f"{origin}: {error}; expected names as keys, and numbers, text and lists as values") from None


def _plain(value: Any) -> Any:
    """Return for a value that JSON has not one that it has: Python's numbers for NumPy's, texts for dates."""
    # Not by its class, since NumPy takes time to import.
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    return dict(value) if isinstance(value, Mapping) else str(value)


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _error(f"config {path}: cannot be read ({reason}); give the path of a YAML file") from None
    if len(data) > _MAX_BYTES:
        raise _error(f"config {path}: received more than {_MAX_BYTES:,} bytes, expected a YAML file of settings")
    return text


class _BoundedComposer(Composer):
    """Refuses YAML that is short as text and large when read: deep nesting, aliases of aliases, cycles."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._depth, self._num_values = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read the next value; an alias counts as all values that it stands for."""
        mark, before = self.parser.peek_event().start_mark, self._num_values
        is_alias = self.parser.check_event(AliasEvent)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ComposerError(problem=f"nested deeper than {_MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._sizes:
            raise ComposerError(problem="an alias inside of what it stands for", problem_mark=mark)
        self._num_values += self._sizes[id(node)] if is_alias else 1
        if self._num_values > _MAX_VALUES:
            raise ComposerError(problem=f"more than {_MAX_VALUES:,} values, aliases written out", problem_mark=mark)
        if not is_alias:
            self._sizes[id(node)] = self._num_values - before
        self._depth -= 1
        return node


def _parse_yaml(text: str, origin: str) -> Any:
    # The safe loader in pure Python: YAML 1.2, no tags that create objects, an error if a key is given twice.
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _BoundedComposer
    try:
        return yaml.load(text)
    except Exception as error:  # with tags of unknown origin the parser may raise any error
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise _error(f"{origin}{place}: not valid YAML: {problem}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise _error(f"--set {override}: expected section.key=value, as in --set train.num_epochs=10")
    section = document
    for part in parts[:-1]:
        # A section that is null, as in the configuration that a run records, begins as an empty one.
        section[part] = {} if section.get(part) is None else section[part]
        section = section[part]
        if not isinstance(section, dict):
            raise _error(f"--set {override}: `{part}` is a value, not a section")
    section[parts[-1]] = _parse_yaml(text, f"--set {override}")


def _of_one_branch(errors: list[Any]) -> list[Any]:
    """Leave out what pydantic says of the other kind of value where a name or a section is possible."""
    # Its place has the kind as a part that is no key: `literal['a','b']`, or the name of the section's class.
    cleaned = [{**error, "loc": tuple(part for part in error["loc"] if not _is_kind(part))} for error in errors]
    named = [error["loc"] for error in cleaned if error["type"] == "literal_error"]
    sections = [error["loc"] for error in cleaned if isinstance(error["input"], dict)]
    kept = [
        error
        for error in cleaned
        if not (error["type"] == "dataclass_type" and error["loc"] in named)
        and not (error["type"] == "literal_error" and error["loc"] in sections)
    ]
    return kept or cleaned


def _is_kind(part: Any) -> bool:
    return isinstance(part, str) and (part.startswith("literal[") or part == ChannelStatistics.__name__)


def _is_no_unknown_key(error: Any) -> bool:
    # The first to be told of: a misspelled key that is required is missing as well.
    return error["type"] not in _UNKNOWN_KEY


def _describe(error: Any) -> str:
    location, alternative = error["loc"], ""
    is_known = error["type"] not in _UNKNOWN_KEY
    if location and is_known and isinstance(location[-1], str) and _type_at(location[:-1]) is None:
        # A number or `auto`: pydantic adds the name of the type that it tried.
        location, alternative = location[:-1], ", or 'auto'"
    place = one_line(".".join(map(str, location)))
    received = error["input"]
    if error["type"] in _UNKNOWN_KEY:
        return _describe_unknown_key(error["loc"])
    if error["type"] in ("missing", "missing_argument"):
        return f"{place}: missing; expected {_expected_type(error['loc'])}"
    if error["type"] == "json_invalid":
        return "it holds text that is not Unicode, half of a surrogate pair"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if error["type"].startswith("dataclass"):
        expected = "a section with keys below it"
    return f"{place}: received {one_line(repr(received))}, expected {expected}{alternative}"


def _error(message: str) -> ConfigError:
    # One line, since the message has keys and values of the file.
    return ConfigError(one_line(message, _MAX_MESSAGE))


def _describe_unknown_key(location: tuple[Any, ...]) -> str:
    names = _names_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1])[:100], names, n=1)
    if len(location) == 1:
        # Its section was forgotten.
        near = [f"{name}.{location[0]}" for name in names if location[0] in _names_at((name,))] or near
    hint = f"did you mean `{'` or `'.join(near)}`?" if near else f"expected one of {', '.join(names)}"
    return f"{one_line('.'.join(map(str, location)))}: unknown key; {hint}"


def _names_at(location: tuple[Any, ...]) -> list[str]:
    section = _type_at(location)
    return [field.name for field in dataclasses.fields(section)] if section else []


def _type_at(location: tuple[Any, ...]) -> Any:
    current: Any = Config
    for part in location:
        hints = typing.get_type_hints(current)
        current = hints.get(str(part))
        if typing.get_origin(current) in (typing.Union, types.UnionType):
            kinds = [arg for arg in typing.get_args(current) if arg is not type(None)]
            current = next((arg for arg in kinds if dataclasses.is_dataclass(arg)), kinds[0])
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
