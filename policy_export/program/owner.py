"""A function of the owner's that decides as the policy does, such as ``predict`` of the trainer that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.config.errors import ProfileError
from policy_export.config.profile import Made
from policy_export.device.arrays import Arrays
from policy_export.device.errors import one_line
from policy_export.environments.factories import checked_arguments, import_function, takes

Predict = Callable[..., Any]


def load_reference(reference: str | Made) -> tuple[str, Predict]:
    """Return the name of a profile's reference, and the function, which decides for one observation.

    Raises:
        ProfileError: it is not there, or what makes it fails.
    """
    if isinstance(reference, str):
        return reference, import_function("reference", reference)
    factory = import_function("reference", reference.factory)
    arguments = checked_arguments("reference", factory, reference.arguments, after=0)
    try:
        predict: Predict = factory(**arguments)
    except Exception as error:  # a user's function may fail in any way
        raise ProfileError(f"reference.factory: {reference.factory!r} fails: {one_line(error)}") from error
    if not callable(predict):
        raise ProfileError(f"reference.factory: {reference.factory!r} makes a {type(predict).__name__}, no function")
    return reference.factory, predict


class Owner:
    """A function of the owner's, asked step by step.

    Args:
        name: of the function.
        predict: takes an observation, as the environment shows it: an array, or several by name; and ``is_init``, true
            where an episode begins, if it has a parameter of this name. Returns the action.
        outputs: names, dtypes and shapes of the policy's outputs, by name.
        actions: names of those that are actions.
    """

    def __init__(
        self, name: str, predict: Predict, outputs: Mapping[str, Mapping[str, Any]], actions: list[str]
    ) -> None:
        self.name, self.predict, self.outputs, self.actions = name, predict, outputs, actions
        self.told = takes(predict, "is_init")

    def decide(self, shown: Arrays, *, begins: bool) -> Arrays:
        """Return the actions for one observation, without batch, by name.

        Raises:
            ProfileError: the function fails, or gives something else.
        """
        # A copy, as an environment may write the next observation over this one, and the function into it.
        copies = {name: array.copy() for name, array in shown.items()}
        given = next(iter(copies.values())) if len(copies) == 1 else copies
        try:
            made = self.predict(given, is_init=begins) if self.told else self.predict(given)
        except Exception as error:  # a user's function may fail in any way
            raise ProfileError(f"reference: {self.name!r} fails: {type(error).__name__}: {one_line(error)}") from error
        by_name = made if isinstance(made, Mapping) else dict.fromkeys(self.actions, made)
        return {name: self._checked(name, by_name.get(name)) for name in self.actions}

    def _checked(self, name: str, made: Any) -> npt.NDArray[Any]:
        dtype, shape = np.dtype(self.outputs[name]["dtype"]), tuple(self.outputs[name]["shape"][1:])
        found = np.asarray(made)
        if found.shape != shape or (found.dtype.kind == "f") != (dtype.kind == "f") or found.dtype.kind not in "fiub":
            raise ProfileError(
                f"reference: {self.name!r} gives {found.dtype}{list(found.shape)} as {name}, the policy gives "
                f"{dtype}{list(shape)}"
            )
        return found.astype(dtype)
