"""The algorithms' settings: one module each, with a section ``SETTINGS``. A new module is found automatically."""

from __future__ import annotations

import functools
import importlib
import operator
import pkgutil
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from policy_export.config.section import Section
from policy_export.config.training.base import Learning
from policy_export.config.training.none import Untrained

__all__ = ["ALGORITHMS", "Learning", "Train", "Untrained"]

_MODULES = {found.name: importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)}
ALGORITHMS: dict[str, type[Section]] = {
    name: module.SETTINGS for name, module in _MODULES.items() if hasattr(module, "SETTINGS")
}
_UNION: Any = functools.reduce(operator.or_, ALGORITHMS.values())

if TYPE_CHECKING:
    Train = Learning | Untrained
else:
    Train = Annotated[_UNION, Field(discriminator="algorithm")]
