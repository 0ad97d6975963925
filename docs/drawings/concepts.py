"""Draws the pictures of `docs/concepts.md`: python -m docs.drawings.concepts

The curves of `death.svg` follow from the update rule itself (`resrep_dist/pruning/rules.py` has it in full): a masked
row feels the penalty alone, so its norm falls by lambda times the speed that the momentum has gathered.
"""

from pathlib import Path

from docs.drawings.svg import DEAD, INK, KEPT, MASKED, PALE, arrow, box, curve, drawing, rect, text

IMAGES = Path(__file__).parents[1] / "images"
_RATE, _MOMENTUM, _LASSO_STRENGTH, _NUM_STEPS, _MASK_STEP = 0.01, 0.99, 2e-3, 1600, 400


def overview() -> str:
    """The four stages of a run."""
    stages = [
        ("Insert", "a compactor behind", "each convolution"),
        ("Train and mask", "the weakest channels", "get a mask"),
        ("Rows die", "the penalty takes masked", "rows to exactly zero"),
        ("Merge", "fold, delete, compare;", "a plain Keras model"),
    ]
    shapes = []
    for i, (title, *lines) in enumerate(stages):
        x = 20 + 205 * i
        shapes.append(box(x, 20, 170, 84, title, *lines))
        if i:
            shapes.append(arrow(x - 33, 62, x - 4, 62))
    return drawing(825, 124, *shapes)


def compactor() -> str:
    """Convolution, batch norm and compactor, and the compactor's matrix."""
    shapes = [
        box(20, 75, 130, 60, "convolution", "D channels"),
        arrow(150, 105, 176, 105),
        box(180, 75, 110, 60, "batch norm"),
        arrow(290, 105, 316, 105),
        rect(320, 30, 240, 165),
        text(440, 215, "compactor Q, D x D", size=14),
        arrow(560, 105, 586, 105),
        box(590, 75, 130, 60, "next layers"),
        text(155, 165, "trained by the loss alone", size=12),
    ]
    for row in range(5):
        color = {1: DEAD, 3: MASKED}.get(row, KEPT)
        words = {1: "dead: all zero", 3: "masked: penalty alone"}.get(row, "loss and penalty")
        for column in range(5):
            is_diagonal = row == column
            fill = "white" if row == 1 else (color if is_diagonal else PALE)
            shapes.append(rect(330 + 16 * column, 55 + 24 * row, 13, 18, fill=fill, line=color))
        shapes.append(text(416, 69 + 24 * row, words, size=11, anchor="start"))
    return drawing(740, 230, *shapes)


def death() -> str:
    """Norms of two rows over the steps: one is masked and dies, one is kept."""
    left, bottom, width, height = 60, 220, 600, 180
    norms, norm, speed = [], 1.0, 0.0
    for step in range(_NUM_STEPS):
        if step >= _MASK_STEP and norm > 0:
            speed = _MOMENTUM * speed + _LASSO_STRENGTH
            norm = max(norm - _RATE * speed, 0.0)
        norms.append(norm)
    place = [(left + width * step / _NUM_STEPS, bottom - 150 * value) for step, value in enumerate(norms)]
    died = next(step for step, value in enumerate(norms) if value == 0)
    x_mask, x_died = left + width * _MASK_STEP / _NUM_STEPS, left + width * died / _NUM_STEPS
    shapes = [
        arrow(left, bottom, left + width + 15, bottom),
        arrow(left, bottom, left, bottom - height),
        text(left + width, bottom + 20, "steps", size=12),
        text(left - 8, bottom - 146, "1", size=12, anchor="end"),
        text(left - 8, bottom + 4, "0", size=12, anchor="end"),
        text(left + 8, bottom - height + 6, "norm of a compactor row", size=12, anchor="start"),
        curve([(left, bottom - 150), (left + width, bottom - 150)], color=KEPT),
        curve(place[_MASK_STEP::10], color=MASKED),
        text(left + width, bottom - 158, "kept: the loss holds it", size=12, anchor="end", color=KEPT),
        arrow(x_mask, bottom - 20, x_mask, bottom - 144, color=DEAD),
        text(x_mask, bottom + 20, "masked", size=12),
        text(x_mask + 130, bottom - 100, "masked: the penalty alone", size=12, anchor="start", color=MASKED),
        text(x_died, bottom + 20, "exactly zero: dead", size=12),
    ]
    return drawing(720, 260, *shapes)


def merge() -> str:
    """Folding three layers into one, then deleting dead channels."""
    shapes = [
        box(20, 40, 105, 50, "convolution", "3x3, D"),
        box(131, 40, 95, 50, "batch norm"),
        box(232, 40, 95, 50, "compactor", "1x1, D to D"),
        arrow(330, 65, 386, 65),
        text(358, 54, "fold", size=12),
        box(390, 40, 130, 50, "convolution", "3x3, D, with bias"),
        arrow(523, 65, 579, 65),
        text(551, 54, "delete", size=12),
        box(583, 40, 130, 50, "convolution", "3x3, D', with bias"),
        text(
            366, 130, "Each arrow keeps the outputs; they are compared on real images before a file is kept.", size=12
        ),
    ]
    for i in range(8):
        fill = DEAD if i in (2, 5, 6) else KEPT
        shapes.append(rect(405 + 13 * i, 100, 9, 9, fill=fill, line=INK))
        if i < 5:
            shapes.append(rect(616 + 13 * i, 100, 9, 9, fill=KEPT, line=INK))
    return drawing(733, 145, *shapes)


DRAWINGS = {"overview.svg": overview, "compactor.svg": compactor, "death.svg": death, "merge.svg": merge}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
