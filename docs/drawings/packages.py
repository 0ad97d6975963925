"""Draws the subpackages and which imports which: python -m docs.drawings.packages

The order is import-linter's contract in `pyproject.toml`, the arrows are the imports that the code has.
"""

import sys
from pathlib import Path

from docs.drawings.concepts import IMAGES
from docs.drawings.svg import DEAD, KEPT, MASKED, box, drawing, text

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = "resrep_dist"
ROOT = Path(__file__).parents[2]
# Settings, errors and one number: their arcs would hide the others, and say little.
_WITHOUT_ARCS = ("config", "errors", "version")
_TEXTS = {
    "cli": "commands, exit codes",
    "benchmark": "measurements side by side",
    "runs": "a whole run in its folder",
    "export": "other file formats",
    "reporting": "the table and the page",
    "training": "the step, the loop, Keras fit",
    "monitoring": "hooks, curves, warnings",
    "shrinking": "a smaller model while it trains",
    "merging": "fold, delete, compare",
    "pruning": "update rule, masks, deaths",
    "checkpoints": "state, files, writer",
    "models": "builders, model files",
    "data": "sources, order, augmentation",
    "layers": "compactor, batch norm of all ranks",
    "graph": "what can be pruned, multiply-adds",
    "distributed": "Horovod, stops, lost ranks, lease",
    "config": "schema, loading",
    "errors": "one class for each exit code",
    "timing": "times in a runtime, without TensorFlow",
    "version": "the number",
}


def rows() -> list[list[str]]:
    """The subpackages from top to bottom; those of one row do not import each other."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[package.strip() for package in row.split("|")] for row in layers]


def imports() -> set[tuple[str, str]]:
    """Pairs of subpackages: the first imports the second."""
    graph = grimp.build_graph(_PACKAGE, cache_dir=None)
    pairs = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = tuple(".".join(name.split(".")[1:2]) for name in (importer, imported))
            if pair[0] != pair[1] and all(package in _TEXTS for package in pair):
                pairs.add(pair)
    return pairs


def draw() -> str:
    """One row below the other, an arc for every import."""
    places = {}
    shapes = []
    for i, row in enumerate(rows()):
        for j, package in enumerate(row):
            width = 270 / len(row) - 6 * (len(row) - 1)
            x, y = 250 + j * (width + 12), 12 + 46 * i
            # Two in a row have no space for their texts.
            lines = (package, _TEXTS[package]) if len(row) == 1 else (package,)
            shapes.append(box(x, y, width, 38, *lines))
            places[package] = (x, y + 19, j)
    for package, below in sorted(imports()):
        if below not in _WITHOUT_ARCS:
            shapes.append(_arc(places[package], places[below]))
    bottom = 12 + 46 * len(rows())
    *others, last = _WITHOUT_ARCS
    shapes.append(text(385, bottom + 14, "An arc ends with a dot at the subpackage that is imported.", size=12))
    caption = f"The arcs to {', '.join(others)} and {last} are left out."
    shapes.append(text(385, bottom + 30, caption, size=12))
    return drawing(770, bottom + 44, *shapes)


def _arc(start: tuple[float, float, int], end: tuple[float, float, int]) -> str:
    """From one to the other: on the left to the next rows, on the right if one of two lies on that side."""
    on_right = start[2] == 1 or end[2] == 1
    reach = 16 + 0.36 * (end[1] - start[1])
    x, away = (520, reach) if on_right else (250, -reach)
    y1, y2 = start[1] + 5, end[1] - 5
    color = MASKED if on_right else KEPT
    return (
        f"<path d='M{x} {y1:g} C{x + away:g} {y1:g} {x + away:g} {y2:g} {x} {y2:g}' fill='none' stroke='{color}' "
        f"stroke-opacity='.55'/><circle cx='{x}' cy='{y2:g}' r='3' fill='{color}' stroke='{DEAD}'/>"
    )


if __name__ == "__main__":
    (IMAGES / "packages.svg").write_text(draw(), encoding="utf-8")
