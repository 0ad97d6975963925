"""The documentation is built without a warning, fetches nothing, and names things that exist."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
import typing
from html.parser import HTMLParser
from pathlib import Path

import resrep_dist
from docs.drawings import concepts, overlap, packages
from docs.drawings.packages import ROOT
from docs.hooks.references import command_line
from resrep_dist.cli.main import build_parser
from resrep_dist.config import Config
from tests.docs.examples import PAGES, examples

import pytest

_CODE = re.compile(r"`([^`\n]+)`")
_TOP_FOLDERS = ("configs/", "docs/", "launch/", "resrep_dist/", "tests/")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # A proxy that is not there: whatever the build would fetch fails.
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    environment = os.environ | nowhere | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return folder


class _Fetched(HTMLParser):
    """What a browser loads for a page by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(values.get("href") or "")
        if "src" in values:
            self.addresses.append(values["src"] or "")


def test_the_site_is_built_and_its_pages_fetch_nothing(site):
    pages = list(site.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in PAGES if page.name != "README.md"}
    for page in pages:
        addresses = _Fetched(page.read_text(encoding="utf-8")).addresses
        assert addresses and not [a for a in addresses if "//" in a], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_references_hold_every_key_command_and_name(site):
    configuration = (site / "configuration.html").read_text(encoding="utf-8")
    for key in _keys():
        assert f"<code>{key}</code>" in configuration, key
    commands = (site / "command_line.html").read_text(encoding="utf-8")
    for command in ("train", "merge", "benchmark replay", "plan"):
        assert f"usage: resrep {command} " in commands
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in set(resrep_dist.__all__) - {"__version__"}:
        assert f'id="resrep_dist.{name}"' in api, name


def test_the_drawings_are_current():
    drawn = (concepts.IMAGES / "packages.svg").read_text(encoding="utf-8")
    assert packages.draw() == drawn, "python -m docs.drawings.packages"
    for name, draw in concepts.DRAWINGS.items():
        assert draw() == (concepts.IMAGES / name).read_text(encoding="utf-8"), "python -m docs.drawings.concepts"
    assert overlap.draw() == (concepts.IMAGES / "overlap.svg").read_text(
        encoding="utf-8"
    ), "python -m docs.drawings.overlap"


def test_code_fits_the_width_of_a_page():
    blocks = {str(e): e.text for e in examples() if e.page.startswith("docs/") and e.language != "text"}
    for place, text in (blocks | {"docs/command_line.md": command_line()}).items():
        for line in text.splitlines():
            assert len(line) <= 90, f"{place}: {line}"


def test_readme_is_short_and_its_links_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    links = re.findall(r"\]\(([^)#\s]+)", text)
    assert len(links) > 20
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_commands_and_files_in_the_text_exist(page):
    sections = "|".join(field.name for field in dataclasses.fields(Config))
    help_texts = {parser.prog for parser in _parsers(build_parser())}
    for code in _CODE.findall(page.read_text(encoding="utf-8")):
        key = re.match(rf"({sections})\.[a-z0-9_]+$", code.split(":")[0])
        # Files such as model.h5 look like keys.
        if key and not code.endswith((".h5", ".json", ".yaml", ".py", ".onnx")) and "trainer" not in code:
            assert key[0] in _keys(), f"`{code}` is no key of a configuration"
        if command := re.match(r"resrep [a-z]+( (data|steps|replay|latency)\b)?", code):
            assert command[0] in help_texts, f"`{code}` is no command"
        if code.startswith(_TOP_FOLDERS) and not re.search(r"[<>*{ ]", code):
            assert (ROOT / code).exists(), f"`{code}` does not exist"


def test_where_to_change_what_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = [
        code for code in _CODE.findall(text) if re.fullmatch(r"[a-z_]+(/[a-z_]*)*(\.(py|sh))?", code) and "/" in code
    ]
    assert len(paths) > 60
    for path in paths:
        assert (ROOT / "resrep_dist" / path).exists() or (ROOT / path).exists(), path


def test_the_messages_in_troubleshooting_are_ones_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## Set-up")[2]
    known = [message for path in (ROOT / "resrep_dist").rglob("*.py") for message in _messages(path)]
    known.append((ROOT / "launch" / "setup.sh").read_text(encoding="utf-8"))
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    quoted = [message for cell in cells for message in _CODE.findall(cell)]
    assert len(quoted) > 50
    for message in quoted:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.search(pattern, text) for text in known), f"no message of the code reads `{message}`"


def _keys() -> set[str]:
    keys = set()
    for name, hint in typing.get_type_hints(Config).items():
        section = next((part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None)
        keys |= {f"{name}.{field.name}" for field in dataclasses.fields(section)} if section else {name}
    return keys


def _parsers(parser):
    yield parser
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for child in action.choices.values():
                yield from _parsers(child)


def _messages(path: Path) -> list[str]:
    """All texts in a file; what is filled in stands as `...`."""
    messages = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
            messages.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            messages.append(re.sub(r"%[-+.\d]*[a-z]", "...", node.value))
    return messages
