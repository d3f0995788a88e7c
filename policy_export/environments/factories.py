"""Functions that a profile names, and their arguments."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from policy_export.config.errors import ProfileError
from policy_export.config.profile import describe_mistakes
from policy_export.device.errors import one_line


def import_function(key: str, factory: str) -> Callable[..., Any]:
    """Return the function ``module:function``.

    Args:
        key: of the profile, under which the ``factory`` is named.
        factory: its name.

    Raises:
        ProfileError: it is not there, or its module cannot be imported.
    """
    module, function = factory.split(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ProfileError(f"{key}.factory: {factory!r}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise ProfileError(f"{key}.factory: {factory!r}: {type(error).__name__}: {one_line(error)}") from error
    return found


def takes(factory: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of a name, be it among those that it takes by any name."""
    parameters = inspect.signature(factory).parameters
    return name in parameters or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def checked_arguments(
    key: str, factory: Callable[..., Any], arguments: dict[str, Any], *, after: int
) -> dict[str, Any]:
    """Return a function's arguments, checked against its signature: their names, and their types where it has any.

    Args:
        key: of the profile, under which the arguments stand.
        factory: the function.
        arguments: by name.
        after: number of its parameters that are given to it otherwise, the first ones.

    Raises:
        ProfileError: the mistakes, a line each.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())[after:]
        hints = typing.get_type_hints(factory, include_extras=True)
        model = _model(parameters, hints)
    except Exception as error:  # no function, or annotations that cannot be read
        what = f"{factory.__module__}:{factory.__qualname__}" if hasattr(factory, "__qualname__") else repr(factory)
        raise ProfileError(f"{key}.factory: {what!r}: {type(error).__name__}: {one_line(error)}") from error
    try:
        checked = model.model_validate(arguments)
    except ValidationError as error:
        raise ProfileError("\n".join(describe_mistakes(error, model, f"{key}."))) from None
    named: dict[str, Any] = {str(field.alias): getattr(checked, name) for name, field in model.model_fields.items()}
    return named | dict(checked.model_extra or {})


def _model(parameters: list[inspect.Parameter], hints: dict[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            # A field may not be called as a method of the model is.
            fields[f"argument_{len(fields)}"] = (hints.get(parameter.name, Any), Field(default, alias=parameter.name))
    config = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True)
    return create_model("Arguments", __config__=config, **fields)
