"""What in a configuration differs from the defaults."""

import dataclasses
from typing import Any

from resrep_dist.config.document import Config

NO_DEFAULT = "must be given"
"""In place of the default of a setting that has none."""


def changed_settings(config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from their defaults.

    Args:
        config: A configuration.

    Returns:
        Default and value by the name of the setting, as in `train.num_epochs`. The default of a required setting is
        `NO_DEFAULT`.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(Config):
        section = getattr(config, field.name)
        if not dataclasses.is_dataclass(section) or isinstance(section, type):
            if section not in (None, field.default):
                changed[field.name] = (field.default, section)
            continue
        defaults = _defaults(config, field.name)
        for name, value in dataclasses.asdict(section).items():
            if value != defaults.get(name, NO_DEFAULT):
                changed[f"{field.name}.{name}"] = (defaults.get(name, NO_DEFAULT), value)
    return changed


def _defaults(config: Config, section: str) -> dict[str, Any]:
    """Return the defaults of a section by the names of its keys."""
    if section == "data":
        # The defaults of these two depend on the source and on the model.
        data = dataclasses.replace(config.data, augmentation="default", normalization="default")
        automatic = dataclasses.replace(config, data=data).data
        resolved = {"augmentation": automatic.augmentation, "normalization": automatic.normalization}
    else:
        resolved = {}
    fields = dataclasses.fields(getattr(config, section))
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING} | resolved
