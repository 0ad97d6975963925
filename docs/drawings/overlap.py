"""Draws one step of two ranks, as it was measured: python -m docs.drawings.overlap

`overlap.json` is written by `python -m tests.quality.overlap`, from Horovod's timeline and what the step noted.
"""

import json
from pathlib import Path

from docs.drawings.concepts import IMAGES
from docs.drawings.svg import DEAD, INK, KEPT, MASKED, drawing, rect, text

DATA = Path(__file__).with_name("overlap.json")
_LEFT, _WIDTH, _TOP, _ROW = 170, 560, 52, 30


def draw() -> str:
    """One bar for the computation, and one for each collective below it."""
    step = json.loads(DATA.read_text(encoding="utf-8"))
    collectives = sorted(step["collectives"].values(), key=lambda times: times["ready_ms"])
    scale = _WIDTH / step["step_ms"]
    # The last collective is that of all but the gradients.
    all_there = collectives[-2]["ready_ms"]
    bottom = _TOP + _ROW * (len(collectives) + 1)
    x_there = _LEFT + scale * all_there
    shapes = [
        text(_LEFT, 20, f"{step['model']}, two hosts, {step['megabits']:g} Mbit/s", anchor="start"),
        text(_LEFT - 12, _TOP + 16, "computation", anchor="end", size=13),
        rect(_LEFT, _TOP, scale * all_there, 20, fill=MASKED, line=MASKED),
        f"<path d='M{x_there:.1f} {_TOP - 8} V{bottom}' stroke='{INK}' stroke-dasharray='4'/>",
        text(x_there, _TOP - 13, "the last gradients are there", size=12, anchor="end"),
    ]
    for row, times in enumerate(collectives, 1):
        y = _TOP + _ROW * row
        is_rest = row == len(collectives)
        words = "all else" if is_rest else f"gradients {row}"
        ready, start, end = (_LEFT + scale * times[f"{moment}_ms"] for moment in ("ready", "start", "end"))
        shapes.append(text(_LEFT - 12, y + 16, words, anchor="end", size=13))
        shapes.append(rect(ready, y, max(1.0, start - ready), 20, fill=DEAD, line=DEAD))
        shapes.append(rect(start, y, max(1.0, end - start), 20, fill=KEPT, line=KEPT))
    for color, x, words in ((DEAD, _LEFT, "waits for the link"), (KEPT, _LEFT + 170, "travels")):
        shapes.append(rect(x, bottom + 14, 14, 14, fill=color, line=color))
        shapes.append(text(x + 22, bottom + 26, words, anchor="start", size=12))
    shapes.append(text(_LEFT + _WIDTH, bottom + 26, f"{step['step_ms']:.0f} ms", anchor="end", size=12))
    return drawing(_LEFT + _WIDTH + 20, bottom + 40, *shapes)


if __name__ == "__main__":
    (IMAGES / "overlap.svg").write_text(draw(), encoding="utf-8")
