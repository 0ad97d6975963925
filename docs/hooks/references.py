"""Writes the reference pages out of the code when the site is built, so that they cannot fall behind it.

A page asks for a reference by a comment: `<!-- generated: configuration -->`, or `command line`.
"""

import argparse
import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from resrep_dist.cli.main import build_parser
from resrep_dist.config import Config

import annotated_types

_MARKER = "<!-- generated: {} -->"
_BOUNDS = {
    annotated_types.Gt: ("gt", "above {}"),
    annotated_types.Ge: ("ge", "at least {}"),
    annotated_types.Lt: ("lt", "below {}"),
    annotated_types.Le: ("le", "at most {}"),
}
_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls with the text of every page."""
    for name, generate in _REFERENCES.items():
        marker = _MARKER.format(name)
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown


def configuration() -> str:
    """A heading for each section, with a table of its keys."""
    hints = typing.get_type_hints(Config, include_extras=True)
    texts = _field_docstrings(Config)
    single = [field for field in dataclasses.fields(Config) if _section_of(hints[field.name]) is None]
    parts = ["## Top level", "", *_table(Config, "", [field.name for field in single])]
    for field in dataclasses.fields(Config):
        section = _section_of(hints[field.name])
        if section is not None:
            required = "Required." if field.default is field.default_factory is dataclasses.MISSING else "Optional."
            # A dataclass without a docstring gets its signature for one.
            own = "" if (section.__doc__ or "").startswith(f"{section.__name__}(") else inspect.getdoc(section) or ""
            # Phases are told apart at the field, other sections often by their class alone.
            about = f"{required} {texts.get(field.name) or own}"
            parts += ["", f"## {field.name}", "", about, "", *_table(section, f"{field.name}.", None)]
    return "\n".join(parts)


def command_line() -> str:
    """A heading for each command, with the help that it prints."""
    parts = []
    for parser in _parsers(build_parser()):
        # argparse wraps to the terminal, which a build has not; a page shows some 88 columns.
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=88)
        parts += [f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(parts)


_REFERENCES: dict[str, Callable[[], str]] = {"configuration": configuration, "command line": command_line}


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _parsers(child)


def _table(section: type, prefix: str, names: list[str] | None) -> Iterator[str]:
    hints = typing.get_type_hints(section, include_extras=True)
    texts = _field_docstrings(section)
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(section):
        if names is None or field.name in names:
            key = f"`{prefix}{field.name}`"
            # A cell of a Markdown table is one line.
            text = " ".join(texts.get(field.name, "").split()).replace("|", "\\|")
            yield f"| {key} | {_describe(hints[field.name])} | {_default(field)} | {text} |"


def _section_of(hint: Any) -> type | None:
    # The bounds of `Annotated` are dataclasses too, but not types.
    parts = (hint, *typing.get_args(hint))
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


def _describe(hint: Any) -> str:
    """A type in words: `Annotated[float, Gt(0), Lt(1)]` is "number, above 0, below 1"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [
            text.format(getattr(bound, name))
            for kind, (name, text) in _BOUNDS.items()
            for bound in arguments[1:]
            if isinstance(bound, kind)
        ]
        return ", ".join([_describe(arguments[0]), *bounds])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("`null`" if part is type(None) else _describe(part) for part in arguments)
    if origin is tuple:
        return f"list; each {_describe(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        return "a section with " + " and ".join(f"`{field.name}`" for field in dataclasses.fields(hint))
    return _TYPES[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _field_docstrings(section: type) -> dict[str, str]:
    """The string below each field; Python does not keep it, so it is read from the source."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            texts[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return texts
