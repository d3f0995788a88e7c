from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential

from policy_export.config.errors import ProfileError
from policy_export.device.environments import make_environment
from policy_export.environments.env import AtariEnv, environment_facts, make_env
from policy_export.environments.preprocess import (
    FRAME,
    FRAMES,
    IS_INIT,
    OBSERVATION,
    PIXELS,
    FrameStack,
    Screen,
)
from policy_export.environments.transforms import program_parts

SCREEN_SHAPE = (210, 160, 3)
WHOLE = {"top": 0, "left": 0, "height": 210, "width": 160}
COURT = {"top": 34, "left": 0, "height": 160, "width": 160}
CORNER = {"top": 109, "left": 91, "height": 101, "width": 69}
LUMINANCE = [0.299, 0.587, 0.114]


@pytest.fixture
def preprocess(variant):
    def make(**values):
        return variant(preprocess=values, policy={"conv": []}).preprocess

    return make


def random_screens(*batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*batch, *SCREEN_SHAPE), dtype=torch.uint8, generator=generator)


def show(transform, screens):
    return transform(TensorDict({OBSERVATION: screens}))[FRAME]


def reference(params, screens):
    """Crop, grey, resize and normalise, one after the other."""
    crop = params.crop
    window = screens[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].float()
    grey = (window @ torch.tensor(params.grey))[:, None]
    align = {"align_corners": False} if params.resize == "bilinear" else {}
    resized = torch.nn.functional.interpolate(grey, params.size, mode=params.resize, **align)
    return (resized - params.mean) / params.std


@pytest.mark.parametrize(
    ("resize", "crop", "size"),
    [
        ("nearest", COURT, [80, 80]),
        ("nearest", COURT, [40, 160]),
        ("nearest", WHOLE, [70, 32]),
        ("nearest", CORNER, [101, 23]),
        ("area", COURT, [40, 40]),
        ("area", COURT, [84, 84]),
        ("area", COURT, [40, 84]),
        ("area", WHOLE, [84, 84]),
        ("area", WHOLE, [1, 1]),
        ("area", CORNER, [7, 50]),
        ("bilinear", COURT, [80, 80]),
        ("bilinear", WHOLE, [84, 84]),
        ("bilinear", CORNER, [200, 31]),
    ],
)
@pytest.mark.parametrize("grey", [[1.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.5, -0.5], LUMINANCE])
def test_screen_is_what_interpolate_makes_of_the_grey_crop(preprocess, resize, crop, size, grey):
    params = preprocess(resize=resize, crop=crop, size=size, grey=grey, mean=100.0, std=40.0)
    screens = random_screens(3)
    frames = show(Screen(params), screens)
    assert (frames.dtype, frames.shape) == (torch.float32, (3, 1, *size))
    torch.testing.assert_close(frames, reference(params, screens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 144, 255])
@pytest.mark.parametrize(
    ("resize", "height", "size"),
    [
        ("nearest", 160, [80, 80]),
        ("bilinear", 160, [90, 80]),
        ("area", 160, [90, 80]),
        ("area", 160, [80, 80]),
        ("area", 128, [1, 80]),  # the most rows of 255 whose sum fits into 16 bits
        ("area", 129, [1, 80]),
        ("area", 210, [1, 80]),
    ],
)
def test_one_colour_keeps_its_normalised_value(preprocess, resize, height, size, value):
    screen = torch.full((1, *SCREEN_SHAPE), value, dtype=torch.uint8)
    crop = WHOLE | {"height": height}
    params = preprocess(resize=resize, crop=crop, size=size, grey=[0.25, 0.25, 0.5], mean=144.0, std=40.0)
    frames = show(Screen(params), screen)
    torch.testing.assert_close(frames, torch.full_like(frames, (value - 144) / 40), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("resize", "size"), [("nearest", [101, 23]), ("area", [20, 20]), ("bilinear", [150, 100])])
def test_only_the_crop_matters(preprocess, resize, size):
    transform = Screen(preprocess(resize=resize, crop=CORNER, size=size, grey=LUMINANCE))
    screens, others = random_screens(2), random_screens(2, seed=1)
    inside = (..., slice(109, 210), slice(91, 160), slice(None))
    others[inside] = screens[inside]
    assert torch.equal(show(transform, screens), show(transform, others))
    others[..., 209, 159, :] ^= 128  # the last pixel of the crop
    assert torch.equal(show(transform, screens), show(transform, others)) == (resize == "nearest")


@pytest.mark.parametrize("resize", ["nearest", "area", "bilinear"])
def test_colours_of_weight_zero_do_not_matter(preprocess, resize):
    transform = Screen(preprocess(resize=resize, crop=COURT, size=[80, 80], grey=[0.0, 1.0, 0.0]))
    screens, others = random_screens(2), random_screens(2, seed=1)
    others[..., 1] = screens[..., 1]
    assert torch.equal(show(transform, screens), show(transform, others))


@pytest.mark.parametrize("resize", ["nearest", "area"])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_any_batch_gives_what_single_screens_give(preprocess, resize, batch):
    transform = Screen(preprocess(resize=resize, crop=COURT, size=[80, 80]))
    screens = random_screens(*batch)
    frames = show(transform, screens)
    assert frames.shape == (*batch, 1, 80, 80)
    single = [show(transform, screen) for screen in screens.reshape(-1, *SCREEN_SHAPE)]
    torch.testing.assert_close(frames.reshape(-1, 1, 80, 80), torch.stack(single), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [2, 4])
def test_stack_starts_anew_in_the_rows_that_begin(preprocess, n):
    stack = FrameStack(preprocess(frames=n, size=[80, 80])).stack
    frame, older = torch.randn(3, 1, 80, 80), torch.randn(3, n - 1, 80, 80)
    older[1] = torch.nan  # whatever is in the memory of a row that begins
    pixels, kept = stack(frame, older, torch.tensor([[False], [True], [False]]))
    for row in (0, 2):
        assert torch.equal(pixels[row], torch.cat([older[row], frame[row]]))
    assert torch.equal(pixels[1], frame[1].expand(n, -1, -1))
    assert torch.equal(kept, pixels[:, 1:])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_stack_of_any_batch(preprocess, batch):
    stack = FrameStack(preprocess(frames=3, size=[80, 80])).stack
    frame, older = torch.randn(*batch, 1, 80, 80), torch.randn(*batch, 2, 80, 80)
    pixels, _ = stack(frame, older, torch.zeros(*batch, 1, dtype=torch.bool))
    assert torch.equal(pixels, torch.cat([older, frame], -3))


@pytest.mark.parametrize(
    ("frames", "resize", "size"), [(1, "nearest", [80, 80]), (2, "nearest", [80, 80]), (4, "area", [42, 40])]
)
def test_program_sees_what_training_saw(variant, frames, resize, size):
    """Check in two games, over the ends of episodes, that the environment's pixels are exactly the program's."""
    profile = variant(
        env={"max_episode_steps": 20},
        preprocess={"frames": frames, "resize": resize, "size": size, "crop": COURT},
        policy={"conv": []},
    )
    env = make_env(profile.env, profile.preprocess, 2, seed=3)
    raw = AtariEnv(profile.env, 2, seed=3)
    parts = program_parts(env)
    modules, specs = parts.before, parts.states
    program = TensorDictSequential(*modules)
    entries, screens = env.reset(), raw.reset()
    state, is_init = torch.full((2, *specs[FRAMES].shape), torch.nan) if frames > 1 else None, torch.ones(2, 1).bool()
    for step in range(45):
        feed = TensorDict({OBSERVATION: screens[OBSERVATION]}, [2])
        if state is not None:
            feed.update({FRAMES: state, IS_INIT: is_init})
        shown = program(feed)
        assert torch.equal(entries[PIXELS], shown[PIXELS]), step
        state = shown["next", FRAMES] if state is not None else None
        action = torch.tensor([step % 6, step // 6 % 6])
        stepped, entries = env.step_and_maybe_reset(entries.set("action", action))
        _, screens = raw.step_and_maybe_reset(screens.set("action", action))
        is_init = stepped["next", "done"]


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ({"top": 51}, "crop reaches row 211 and column 160, but a screen has 210 rows and 160 columns"),
        ({"left": 1}, "column 161"),
    ],
)
def test_crop_beyond_the_screen(variant, crop, message):
    profile = variant(preprocess={"crop": COURT | crop}, policy={"conv": []})
    with pytest.raises(ProfileError, match=message):
        make_env(profile.env, profile.preprocess, 1, seed=0)


def test_screens_of_another_size(variant):
    """Check a game whose screens have 250 rows, in training and on a device."""
    profile = variant(env={"id": "ALE/AirRaid-v5"}, preprocess={"crop": COURT | {"top": 90}}, policy={"conv": []})
    shown = make_env(profile.env, None, 1, seed=3).reset()[OBSERVATION]
    played = make_environment(environment_facts(profile.env), 3).observations[OBSERVATION]
    assert shown.shape == (1, 250, 160, 3)
    assert torch.equal(shown[0], torch.from_numpy(played))
    assert make_env(profile.env, profile.preprocess, 1, seed=3).reset()[PIXELS].shape[-2:] == (40, 40)
