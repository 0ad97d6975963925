"""Data: one file per source, one order of samples for all (`order.py`)."""

from resrep_dist.config import Config
from resrep_dist.data.digits import digits
from resrep_dist.data.source import Source


def load_sources(config: Config) -> tuple[Source, Source]:
    """The training and the validation set that the configuration names."""
    return {"digits": digits}[config.data.source](config.model.image_size)
