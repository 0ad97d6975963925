"""Pictures of a model that is being pruned, as arrays of pixels: uint8 [height, width, 3]."""

from resrep_dist.monitoring.channel_history import ChannelHistory

import numpy as np

LIVING, MASKED = (31, 95, 168), (242, 142, 43)
DIED_FIRST, DIED_LAST = (232, 232, 232), (110, 110, 110)
CHANNELS_LEGEND = (
    "One row of cells per group of layers, from the input (top) to the output; one cell per channel. "
    "Blue: living. Orange: masked, not dead yet. Grey: dead, the darker the later. Ordered by state, so that the blue "
    "part is the width."
)
_PICTURE_WIDTH, _PICTURE_HEIGHT = 960, 480
_MIN_ROW_HEIGHT, _ROW_GAP = 8, 3
_MIN_HEAT_MAP_SIZE = 256


def channel_picture(history: ChannelHistory) -> np.ndarray:
    """Layers x channels: which live, are masked, or died, and when (`CHANNELS_LEGEND`)."""
    deaths = history.first_and_last_death()
    widest = max(len(died_at) for died_at in history.died_at.values())
    cell = max(1, _PICTURE_WIDTH // widest)
    pitch = max(_MIN_ROW_HEIGHT, _PICTURE_HEIGHT // len(history.died_at))
    picture = np.full([len(history.died_at) * pitch, widest * cell, 3], 255, np.uint8)
    for row, name in enumerate(history.died_at):
        colours = channel_colours(history.masked_at[name], history.died_at[name], deaths)
        strip = np.repeat(colours, cell, axis=0)
        picture[row * pitch : (row + 1) * pitch - _ROW_GAP, : len(strip)] = strip
    return picture


def channel_colours(masked_at: np.ndarray, died_at: np.ndarray, deaths: tuple[int, int]) -> np.ndarray:
    """uint8 [D, 3]: living channels first, then the masked ones, then the dead, those that died last first.

    Args:
        deaths: the steps of the lightest and of the darkest grey.
    """
    first, last = deaths
    shade = np.clip((died_at - first) / max(last - first, 1), 0, 1)[:, np.newaxis]
    colours = np.array(DIED_FIRST) + shade * (np.array(DIED_LAST, float) - DIED_FIRST)
    colours[died_at < 0] = LIVING
    colours[(died_at < 0) & (masked_at >= 0)] = MASKED
    order = np.lexsort((masked_at, -died_at, died_at >= 0))
    return colours[order].round().astype(np.uint8)


def heat_map(matrix: np.ndarray) -> np.ndarray:
    """Absolute values of a matrix: white for 0, dark blue for the largest; small ones drawn larger."""
    size = np.abs(matrix) / max(float(np.abs(matrix).max()), 1e-12)
    # The root shows small entries too.
    shade = np.sqrt(size)[..., np.newaxis]
    pixels = (255 + shade * (np.array([8, 48, 107]) - 255.0)).round().astype(np.uint8)
    factor = max(1, _MIN_HEAT_MAP_SIZE // max(matrix.shape))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
