"""One of gymnasium's environments."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .arrays import Action, Arrays
from .errors import UserError, one_line
from .shown import Shown

NO_WORD = re.compile(r"\W")  # of keys, as names are of inputs and outputs
COLOURS, MOST = 3, 255  # of an image


@contextlib.contextmanager
def telling(name: str, failure: str) -> Iterator[None]:
    """Tell a failure of somebody else's environment in one line.

    Args:
        name: of the environment.
        failure: what has failed, with ``{}`` for the name.

    Raises:
        UserError: whatever is raised inside; the message says what failed, and which module is missing.
    """
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        missing = getattr(error.__cause__ or error, "name", None)  # gymnasium's own has none
        raise UserError(
            f"{name} needs the module {missing!r}, which is not there: put it next to the folder `player`"
        ) from None
    except (Exception, SystemExit) as error:  # whatever the environment's own module and methods raise
        raise UserError(f"{failure.format(name)}: {one_line(error)}") from error


class GymEnvironment(Shown):
    """One of gymnasium's environments, driven like an :class:`Emulator`.

    ``observations`` are by name: ``observation`` where there is one, and the entries of a dictionary otherwise, with
    the keys of nested ones joined by ``_``, as TorchRL calls them. What is no array of numbers is left out.

    Args:
        id: its name in gymnasium.
        max_episode_steps: decisions after which an episode is cut off.
        seed: seed of the environment's own random numbers.
        kwargs: arguments of the environment.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        *,
        max_episode_steps: int,
        seed: int,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import gymnasium
        except ImportError:
            raise UserError(f"{id} needs gymnasium: pip install gymnasium") from None
        self.id = id
        with telling(repr(id), "gymnasium does not make {}"):
            # As it was made for the training: gymnasium's checker refuses some that play well.
            self.env = gymnasium.make(
                id, max_episode_steps=max_episode_steps, disable_env_checker=True, **(kwargs or {})
            )
            shown, _ = self.env.reset(seed=seed)
        self.spaces = flat_spaces(self.env.observation_space)
        self.multiple = isinstance(self.env.action_space, gymnasium.spaces.Dict)
        self.observations, self.done = self._observed(shown), False

    def _observed(self, shown: Any) -> Arrays:
        """Return observations in the dtype that the environment declares, as not every environment keeps to it.

        Raises:
            UserError: one is missing, or has another shape than the environment declares.
        """
        flat = flatten(shown) if isinstance(shown, Mapping) else dict.fromkeys(self.spaces, shown)
        found = {}
        for name, (dtype, shape) in self.spaces.items():
            if name not in flat:
                raise UserError(f"{self.id!r} shows {', '.join(flat)}, but declares {name} as well")
            found[name] = np.asarray(flat[name], dtype)
            if not found[name].shape and shape == (1,):
                found[name] = found[name].reshape(shape)
            if found[name].shape != shape:
                raise UserError(f"{self.id!r} shows {name} of shape {list(found[name].shape)}, but declares {[*shape]}")
        return found

    def step(self, action: Action) -> float:
        """Play one decision (an index, an array, or several by name), and return its reward.

        Raises:
            UserError: the environment fails.
        """
        with telling(repr(self.id), "step of {} fails"):
            given = nest(action, self.env.action_space) if self.multiple else action
            shown, reward, terminated, truncated, _ = self.env.step(given)
            self.observations, self.done = self._observed(shown), bool(terminated or truncated)
            return float(reward)


def flat_spaces(space: Any, name: str = "") -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtype and shape of each observation by its name; what is no array of numbers is left out."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for key, inner in space.items():
            found |= flat_spaces(inner, joined(name, renamed(key, space)))
        return found
    if space.shape is None or space.dtype is None or np.dtype(space.dtype).kind not in "biuf":
        return {}
    shape = space.shape if space.shape or not isinstance(space, gymnasium.spaces.Box) else (1,)  # as TorchRL has it
    return {name or only_name(space): (space.dtype, shape)}


def only_name(space: Any) -> str:
    """Return TorchRL's name for the only observation: images in colour are ``pixels``."""
    bounds = (getattr(space, "low", None), getattr(space, "high", None))
    image = len(space.shape) == len(("height", "width", "colour")) and space.shape[-1] == COLOURS
    return "pixels" if image and np.all(bounds[0] == 0) and np.all(bounds[1] == MOST) else "observation"


def renamed(key: str, siblings: Mapping[str, Any]) -> str:
    """Return TorchRL's name for a key: it calls a ``state`` an ``observation`` where there is no other."""
    return "observation" if key == "state" and "observation" not in siblings else key


def joined(name: str, key: str) -> str:
    own = NO_WORD.sub("_", key)
    return f"{name}_{own}" if name else own


def flatten(shown: Any, name: str = "") -> dict[str, Any]:
    """Return what an environment shows by flat names."""
    if not isinstance(shown, Mapping):
        return {name: shown}
    found: dict[str, Any] = {}
    for key, value in shown.items():
        found |= flatten(value, joined(name, renamed(key, shown)))
    return found


def nest(action: Any, space: Any, name: str = "") -> Any:
    """Return actions by flat names in the form of a dictionary of spaces."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        return {key: nest(action, inner, joined(name, key)) for key, inner in space.items()}
    return action[name] if np.ndim(action[name]) else action[name].item()
