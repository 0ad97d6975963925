"""Every command's help ends with examples that the command line understands."""

import argparse
import shlex

from resrep_dist.cli.main import build_parser

import pytest


def parsers(parser):
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield from [parser] if not children or parser.prog == "resrep" else []
    for action in children:
        for child in action.choices.values():
            yield from parsers(child)


@pytest.mark.parametrize("parser", parsers(build_parser()), ids=lambda parser: parser.prog)
def test_the_examples_of_a_help_text_are_understood(parser):
    _, heading, after = parser.format_help().partition("examples:\n")
    commands = [line.strip() for line in after.partition("\n\n")[0].splitlines()]
    assert heading and commands
    for command in commands:
        words = shlex.split(command[command.index("resrep ") :].partition(" > ")[0])[1:]
        if "--help" not in words:
            build_parser().parse_args(words)  # leaves by SystemExit if it does not


def test_the_help_of_a_training_says_where_the_keys_are_described_and_others_their_defaults():
    for arguments, expected in (
        (["train"], "is described in resrep_dist/config"),
        (["inspect"], "(default: 1)"),
        (["plan"], "(default: 50)"),
    ):
        with pytest.raises(SystemExit) as left:
            build_parser().parse_args([*arguments, "--help"])
        assert left.value.code == 0
        (parser,) = [parser for parser in parsers(build_parser()) if parser.prog.split()[1:] == arguments]
        assert expected in " ".join(parser.format_help().split())
