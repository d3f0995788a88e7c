"""Preprocessing as TorchRL transforms, shared by the training environment and the exported program.

Every transform is a pure function of its entries. Inside an environment it runs through ``_step`` and ``_reset``, in a
program as a module, and both use the same tensor code. Nothing is kept between calls: memory is an explicit entry.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import Compose, ExcludeTransform, ObservationTransform

from policy_export.config.errors import ProfileError
from policy_export.config.profile import Preprocess

OBSERVATION = "observation"
IS_INIT = "is_init"
FRAME = "frame"
FRAMES = "frames"
PIXELS = "pixels"


def resize_matrix(source: int, target: int, method: str) -> torch.Tensor:
    """Return the weights of a one-dimensional resize as a matrix.

    Args:
        source: number of samples before, at least 1.
        target: number of samples after, at least 1.
        method: ``"area"`` (mean of what a target sample covers) or ``"bilinear"`` (half-pixel centres, no antialias),
            both as in :func:`torch.nn.functional.interpolate`.

    Returns:
        ``(target, source)`` float32; rows sum to 1.
    """
    identity = torch.eye(source)[None, None]
    if method == "area":
        return nn.functional.adaptive_avg_pool2d(identity, (target, source))[0, 0]
    return nn.functional.interpolate(identity, (target, source), mode=method, align_corners=False)[0, 0]


def nearest_slice(offset: int, source: int, target: int) -> slice:
    """Return the rows or columns that a nearest-neighbour resize reads, as :func:`torch.nn.functional.interpolate`.

    ``source`` must be a multiple of ``target``, which the profile ensures: then the rows read are evenly spaced
    and are a view of the screen, and no other byte is touched.
    """
    return slice(offset, offset + source, source // target)


class Screen(ObservationTransform):
    """Turns a raw screen into one grey frame: crop, grey, resize and normalise.

    ``(*batch, H, W, 3)`` uint8 becomes ``(*batch, 1, h, w)`` float32, ``(grey - mean) / std``. No byte is converted to
    a float without need: colour channels of weight zero and pixels that ``nearest`` skips are never read, and the
    rows that ``area`` averages are summed as integers first. The rest is linear: one or two matrix products.
    """

    def __init__(self, params: Preprocess, in_key: str = OBSERVATION, out_key: str = FRAME) -> None:
        super().__init__(in_keys=[in_key], out_keys=[out_key])
        crop, (height, width) = params.crop, params.size
        self.size, self.resize = (height, width), params.resize
        # One channel is a view; two are not worth picking out of three.
        channels = [channel for channel, weight in enumerate(params.grey) if weight]
        self.channels = slice(channels[0], channels[0] + 1) if len(channels) == 1 else slice(0, 3)
        weights = [weight / params.std for weight in params.grey[self.channels]]
        self.shift = params.mean / params.std
        self.weights = weights
        self.rows = slice(crop.top, crop.top + crop.height)
        self.columns = slice(crop.left, crop.left + crop.width)
        if self.resize == "nearest":
            self.rows = nearest_slice(crop.top, crop.height, height)
            self.columns = nearest_slice(crop.left, crop.width, width)
            return
        horizontal = resize_matrix(crop.width, width, params.resize)
        # Rows of (W, C) lie flat in memory, so grey and the horizontal resize are one product.
        both = (horizontal.T[:, None, :] * torch.tensor(weights)[None, :, None]).flatten(0, 1)
        self.rows_a_target = crop.height // height if crop.height % height == 0 and self.resize == "area" else 0
        if self.rows_a_target:
            both /= self.rows_a_target
        else:
            self.register_buffer("vertical", resize_matrix(crop.height, height, params.resize), persistent=False)
        self.register_buffer("horizontal", both.contiguous(), persistent=False)

    def as_module(self) -> nn.Module:
        return self

    def _apply_transform(self, obs: torch.Tensor) -> torch.Tensor:
        window = obs[..., self.rows, self.columns, self.channels]
        if self.resize == "nearest":
            planes = [window[..., channel].float() * weight for channel, weight in enumerate(self.weights)]
            grey = sum(planes[1:], planes[0])
        elif self.rows_a_target:
            integers = window.flatten(-2).to(torch.int32 if self.rows_a_target > 128 else torch.int16)  # no overflow
            bands = integers.unflatten(-2, (self.size[0], self.rows_a_target))
            total = bands[..., 0, :]
            for row in range(1, self.rows_a_target):
                total = total + bands[..., row, :]
            grey = total.float() @ self.horizontal
        else:
            grey = self.vertical @ window.flatten(-2).float() @ self.horizontal
        return (grey - self.shift).unsqueeze(-3)

    def _reset(self, _: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        source = observation_spec[self.in_keys[0]]
        shape = (*source.shape[:-3], 1, *self.size)
        observation_spec[self.out_keys[0]] = Unbounded(shape=shape, dtype=torch.float32, device=source.device)
        return observation_spec


class FrameStack(ObservationTransform):
    """The last ``n`` frames as channels, oldest first; at the start of an episode, its first frame ``n`` times.

    In an environment the older frames are those of the previous step's stack. In a program, :meth:`as_module`, they
    come in as ``frames`` and go out as ``("next", "frames")``.
    """

    def __init__(self, params: Preprocess) -> None:
        super().__init__(in_keys=[FRAME], out_keys=[PIXELS])
        self.n, self.size = params.frames, params.size

    def stack(
        self, frame: torch.Tensor, older: torch.Tensor, is_init: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stack with the newest frame, and the frames that are older than the next one.

        Args:
            frame: ``(*batch, 1, h, w)`` float32.
            older: ``(*batch, n - 1, h, w)`` float32; ignored where ``is_init`` is true.
            is_init: ``(*batch, 1)`` bool.

        Returns:
            ``(*batch, n, h, w)`` and ``(*batch, n - 1, h, w)``.
        """
        pixels = torch.cat([torch.where(is_init[..., None, None], frame, older), frame], -3)
        return pixels, pixels[..., 1:, :, :]

    def as_module(self) -> TensorDictModule:
        return TensorDictModule(self.stack, in_keys=[FRAME, FRAMES, IS_INIT], out_keys=[PIXELS, ("next", FRAMES)])

    @property
    def state_spec(self) -> Composite:
        return Composite({FRAMES: Unbounded((self.n - 1, *self.size), dtype=torch.float32)})

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        older = tensordict[PIXELS][..., 1:, :, :]
        pixels, _ = self.stack(next_tensordict[FRAME], older, torch.zeros(*older.shape[:-3], 1, dtype=torch.bool))
        return next_tensordict.set(PIXELS, pixels)

    def _reset(self, _: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        frame = tensordict_reset[FRAME]
        return tensordict_reset.set(PIXELS, frame.expand(*frame.shape[:-3], self.n, *self.size))

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        batch = observation_spec[FRAME].shape[:-3]
        observation_spec[PIXELS] = Unbounded((*batch, self.n, *self.size), dtype=torch.float32)
        return observation_spec


def env_transforms(params: Preprocess) -> Compose:
    """Return the preprocessing as an environment's transform, from screen to ``pixels`` ``(*batch, frames, h, w)``."""
    if params.frames == 1:
        return Compose(Screen(params, out_key=PIXELS), ExcludeTransform(OBSERVATION))
    return Compose(Screen(params), FrameStack(params), ExcludeTransform(OBSERVATION, FRAME))


def check_crop(params: Preprocess, height: int, width: int) -> None:
    """Compare what is cut out of a screen with the screen.

    Raises:
        ProfileError: it reaches beyond it.
    """
    bottom, right = params.crop.top + params.crop.height, params.crop.left + params.crop.width
    if bottom > height or right > width:
        raise ProfileError(
            f"preprocess: crop reaches row {bottom} and column {right}, but a screen has {height} rows and {width} "
            "columns"
        )
