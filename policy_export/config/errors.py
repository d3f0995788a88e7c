"""Mistakes in a policy's profile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from policy_export.device.errors import UserError


class ProfileError(UserError):
    """A mistake in a policy's profile, described by the profile's keys; :func:`naming` adds the policy's name."""


@contextlib.contextmanager
def naming(policy: str) -> Iterator[None]:
    """Add file and policy to the messages of mistakes in a profile.

    Raises:
        UserError: what was raised inside; every line of a :class:`ProfileError` starts with file and policy.
    """
    try:
        yield
    except ProfileError as error:
        lines = [f"params.yaml: policies.{policy}: {line}" for line in str(error).splitlines()]
        raise UserError("\n".join(lines)) from error.__cause__


@contextlib.contextmanager
def under(key: str) -> Iterator[None]:
    """Add a key of the profile to the messages of errors that name none.

    Raises:
        ProfileError: a :class:`UserError` was raised inside.
    """
    try:
        yield
    except ProfileError:
        raise
    except UserError as error:
        raise ProfileError(f"{key}: {error}") from error.__cause__
