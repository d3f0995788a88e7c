"""A policy that is not trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from policy_export.config.section import Count, Device, Section


class Untrained(Section):
    """The factory's policy is taken as it is."""

    algorithm: Literal["none"]
    device: Device = "auto"
    seed: Annotated[int, Field(ge=0, lt=1000)]
    eval_episodes: Count


SETTINGS = Untrained
