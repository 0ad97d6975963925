"""What a page is made of: sections with pictures, tables and paragraphs."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Picture:
    """An SVG and the name of its file beside the Markdown page."""

    name: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Headings, rows of as many cells, a line of text above them, and a color for each row that has one."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""
    colors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; what is empty is left out."""

    heading: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()
