"""A few shapes as SVG text, in one style for all drawings of the documentation."""

from html import escape

INK, KEPT, MASKED, DEAD, PALE = "#1f2933", "#3f51b5", "#e67e22", "#c8ccd4", "#eef0fb"
_FONT = "font-family='system-ui, sans-serif'"


def drawing(width: int, height: int, *shapes: str) -> str:
    """The whole picture, on white: it is shown on dark pages too."""
    body = "\n".join(shapes)
    arrow = (
        "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker></defs>"
    )
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
    return f"{head}\n{arrow}\n<rect width='{width}' height='{height}' fill='white'/>\n{body}\n</svg>\n"


def text(x: float, y: float, words: str, *, size: int = 14, anchor: str = "middle", color: str = INK) -> str:
    """One line of text; `y` is its baseline."""
    place = f"x='{x:g}' y='{y:g}' font-size='{size}' text-anchor='{anchor}' fill='{color}'"
    return f"<text {place} {_FONT}>{escape(words)}</text>"


def rect(x: float, y: float, width: float, height: float, *, fill: str = PALE, line: str = INK) -> str:
    """A rectangle with slightly round corners."""
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='4' fill='{fill}' stroke='{line}'/>"


def box(x: float, y: float, width: float, height: float, *lines: str, fill: str = PALE) -> str:
    """A rectangle with lines of text in its middle."""
    first = y + height / 2 + 5 - 9 * (len(lines) - 1)
    return rect(x, y, width, height, fill=fill) + "".join(
        text(x + width / 2, first + 18 * i, line, size=14 if i == 0 else 12) for i, line in enumerate(lines)
    )


def arrow(x1: float, y1: float, x2: float, y2: float, *, color: str = INK, width: float = 1.5) -> str:
    """A straight arrow."""
    return (
        f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{color}' stroke-width='{width:g}' "
        "marker-end='url(#head)'/>"
    )


def curve(points: list[tuple[float, float]], *, color: str) -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='2'/>"
