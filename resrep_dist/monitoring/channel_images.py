"""Images of a model that is being pruned, as arrays of pixels: uint8 [height, width, 3]."""

from resrep_dist.monitoring.channel_history import ChannelHistory

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LIVING, MASKED = (31, 95, 168), (242, 142, 43)
DIED_FIRST, DIED_LAST = (232, 232, 232), (110, 110, 110)
CHANNELS_LEGEND = (
    "One row of cells per group of layers, from the input (top) to the output, with the number of its living channels; "
    "one cell per channel. "
    "Blue: living. Orange: masked, not dead yet. Gray: dead, the darker the later. Ordered by state, so that the blue "
    "part is the width."
)
_PICTURE_WIDTH, _PICTURE_HEIGHT = 960, 480
_MIN_ROW_HEIGHT, _ROW_GAP = 14, 3
_LABELS_WIDTH, _MAX_FONT_SIZE, _MAX_NAME_LENGTH = 240, 16, 26
_MIN_HEAT_MAP_SIZE = 256


def channel_picture(history: ChannelHistory) -> np.ndarray:
    """Draw which channels live, are masked, or died, and when; see `CHANNELS_LEGEND`.

    Args:
        history: History of at least one group.

    Returns:
        uint8 [height, width, 3], one row of cells per group, with its name.
    """
    deaths = history.first_and_last_death()
    widest = max(len(died_at) for died_at in history.died_at.values())
    cell = max(1, _PICTURE_WIDTH // widest)
    pitch = max(_MIN_ROW_HEIGHT, _PICTURE_HEIGHT // len(history.died_at))
    picture = np.full([len(history.died_at) * pitch, widest * cell, 3], 255, np.uint8)
    labels = Image.new("RGB", (_LABELS_WIDTH, len(picture)), "white")
    draw, font = ImageDraw.Draw(labels), ImageFont.load_default(size=min(_MAX_FONT_SIZE, pitch - _ROW_GAP))
    for row, name in enumerate(history.died_at):
        colors = channel_colors(history.masked_at[name], history.died_at[name], deaths)
        strip = np.repeat(colors, cell, axis=0)
        picture[row * pitch : (row + 1) * pitch - _ROW_GAP, : len(strip)] = strip
        middle = row * pitch + (pitch - _ROW_GAP) / 2
        label = f"{_shortened(name)}  {(history.died_at[name] < 0).sum()}"
        draw.text((_LABELS_WIDTH - 8, middle), label, fill="black", font=font, anchor="rm")
    return np.concatenate([np.asarray(labels), picture], axis=1)


def _shortened(name: str) -> str:
    half = _MAX_NAME_LENGTH // 2
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def channel_colors(masked_at: np.ndarray, died_at: np.ndarray, deaths: tuple[int, int]) -> np.ndarray:
    """Return the color of each channel: living channels first, then masked ones, then dead ones, the last to die first.

    Args:
        masked_at: Step at which each channel was masked, or -1, [D].
        died_at: Step at which each channel died, or -1, [D].
        deaths: Steps of the lightest and of the darkest gray.

    Returns:
        uint8 [D, 3].
    """
    first, last = deaths
    shade = np.clip((died_at - first) / max(last - first, 1), 0, 1)[:, np.newaxis]
    colors = np.array(DIED_FIRST) + shade * (np.array(DIED_LAST, float) - DIED_FIRST)
    colors[died_at < 0] = LIVING
    colors[(died_at < 0) & (masked_at >= 0)] = MASKED
    order = np.lexsort((masked_at, -died_at, died_at >= 0))
    return colors[order].round().astype(np.uint8)


def heat_map(matrix: np.ndarray) -> np.ndarray:
    """Draw the absolute values of a matrix, from white for 0 to dark blue for the largest.

    Args:
        matrix: [height, width]. A small matrix is drawn with several pixels per entry.

    Returns:
        uint8 [height, width, 3].
    """
    size = np.abs(matrix) / max(float(np.abs(matrix).max()), 1e-12)
    # The square root makes small entries visible.
    shade = np.sqrt(size)[..., np.newaxis]
    pixels = (255 + shade * (np.array([8, 48, 107]) - 255.0)).round().astype(np.uint8)
    factor = max(1, _MIN_HEAT_MAP_SIZE // max(matrix.shape))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
