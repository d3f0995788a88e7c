"""Preprocessing as TorchRL transforms, shared by the training environment and the exported program.

Every transform is a pure function of its entries. Inside an environment it runs through ``_step`` and ``_reset``, in a
program as a module, and both reach the same tensor code. Nothing is kept between calls: memory is an explicit entry.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.transforms import Compose, ExcludeTransform, ObservationTransform

from stages.common.params import Preprocess

SCREEN_SHAPE = (210, 160, 3)

OBSERVATION = "observation"
IS_INIT = "is_init"
FRAME = "frame"
FRAMES = "frames"
PIXELS = "pixels"


def resize_matrix(source: int, target: int, method: str) -> torch.Tensor:
    """Weights of a one-dimensional resize as a matrix.

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
    """The rows (or columns) that a nearest-neighbour resize reads, as in :func:`torch.nn.functional.interpolate`.

    ``source`` must be a multiple of ``target``, which :class:`~stages.common.params.Preprocess` ensures: then what is
    read is evenly spaced and is a view of the screen, and not one byte more is touched.
    """
    return slice(offset, offset + source, source // target)


class Screen(ObservationTransform):
    """Raw screen to one grey frame: crop, grey, resize and normalise.

    ``(*batch, H, W, 3)`` uint8 becomes ``(*batch, 1, h, w)`` float32. Colour channels of weight zero and, with
    ``nearest``, pixels that are not sampled are never read. The other two methods are linear, so grey, resize and
    division are two matrix products. The values are ``(grey - mean) / std``.
    """

    def __init__(self, params: Preprocess, in_key: str = OBSERVATION, out_key: str = FRAME) -> None:
        super().__init__(in_keys=[in_key], out_keys=[out_key])
        crop, (height, width) = params.crop, params.size
        self.size = (height, width)
        self.weights = [weight / params.std for weight in params.grey]
        self.shift = params.mean / params.std
        self.nearest = params.resize == "nearest"
        if self.nearest:
            self.rows = nearest_slice(crop.top, crop.height, height)
            self.columns = nearest_slice(crop.left, crop.width, width)
        else:
            self.rows = slice(crop.top, crop.top + crop.height)
            self.columns = slice(crop.left, crop.left + crop.width)
            vertical = resize_matrix(crop.height, height, params.resize)
            horizontal = resize_matrix(crop.width, width, params.resize)
            self.register_buffer("vertical", vertical, persistent=False)
            # (W, C) flattened is how a row lies in memory, so grey and the horizontal resize are one product.
            both = (horizontal.T[:, None, :] * torch.tensor(self.weights)[None, :, None]).flatten(0, 1)
            self.register_buffer("horizontal", both, persistent=False)

    def _apply_transform(self, obs: torch.Tensor) -> torch.Tensor:
        window = obs[..., self.rows, self.columns, :]
        if self.nearest:
            planes = [window[..., c].float() * weight for c, weight in enumerate(self.weights) if weight]
            grey = sum(planes[1:], planes[0])
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
        """The stack with the newest frame, and the frames that are older than the next one.

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
    """The preprocessing as the transform of an environment: ``pixels`` ``(*batch, frames, h, w)`` for the screen."""
    chain = [Screen(params, out_key=PIXELS)] if params.frames == 1 else [Screen(params), FrameStack(params)]
    return Compose(*chain, ExcludeTransform(OBSERVATION, FRAME))


def program_modules(params: Preprocess) -> tuple[list[nn.Module], Composite]:
    """The preprocessing as modules of a policy, and what they read.

    Returns:
        modules from ``observation`` (and states and ``is_init``) to ``pixels``, and the specs of the observation and
        the states, without batch.
    """
    specs = Composite({OBSERVATION: Bounded(0, 255, SCREEN_SHAPE, dtype=torch.uint8)})
    if params.frames == 1:
        return [Screen(params, out_key=PIXELS)], specs
    stack = FrameStack(params)
    return [Screen(params), stack.as_module()], specs.update(stack.state_spec)
