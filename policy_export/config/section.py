"""Mappings of ``params.yaml``, and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Discount = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu", "cuda"]
Convolution = Annotated[list[Count], Field(min_length=3, max_length=3)]
"""Channels, kernel and stride of a convolution."""


class Section(BaseModel):
    """A mapping in ``params.yaml``: every key is required and known, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
