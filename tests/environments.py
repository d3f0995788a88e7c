"""Environments and policies as users write them, small enough for tests."""

from __future__ import annotations

import functools
import warnings

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiOneHot, Unbounded
from torchrl.envs import (
    ActionDiscretizer,
    ActionScaling,
    CatFrames,
    CatTensors,
    Compose,
    DoubleToFloat,
    DTypeCastTransform,
    EndOfLifeTransform,
    EnvBase,
    FlattenObservation,
    FrameSkipTransform,
    GymEnv,
    InitTracker,
    NoopResetEnv,
    ObservationNorm,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
    UnsqueezeTransform,
    VecNorm,
    VecNormV2,
)
from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor, QValueActor, TanhNormal

STEPS = 20


class Robot(EnvBase):
    """Shows an image, a vector of doubles, and below ``inner`` a mask and a count; takes one of four actions."""

    def __init__(self, batch=(), fault=None, *, seeded=True, whole=False):
        super().__init__(batch_size=list(batch))
        shape, self.fault, self.seeded = list(batch), fault, seeded
        inner = {
            "mask": Bounded(0, 1, (*shape, 4), dtype=torch.int8) if whole else Binary(4, (*shape, 4), dtype=torch.bool),
            "count": Categorical(10, shape=shape, dtype=torch.int64),
        }
        self.observation_spec = Composite(
            {
                "image": Bounded(0, 255, (*shape, 8, 8, 3), dtype=torch.uint8),
                "vector": Unbounded((*shape, 3), dtype=torch.float64),
                "inner": Composite(inner, shape=shape),
            },
            shape=shape,
        )
        self.action_spec, self.reward_spec = Categorical(4, shape=shape), Unbounded((*shape, 1))
        flags = {key: Binary(1, shape=(*shape, 1), dtype=torch.bool) for key in ("done", "terminated")}
        self.done_spec = Composite(flags, shape=shape)
        self.generator, self.steps = torch.Generator(), 0

    def _set_seed(self, seed):
        if self.seeded:
            self.generator.manual_seed(seed)
        else:
            self.generator.seed()

    def _shown(self):
        shape, generator = list(self.batch_size), self.generator
        mask = torch.rand((*shape, 4), generator=generator) > 0.4
        mask[..., 0] = True
        dtype = torch.float32 if self.fault == "dtype" else torch.float64
        vector = torch.randn((*shape, 3), generator=generator, dtype=dtype)
        if self.fault == "nan" or (self.fault == "nan later" and self.steps == 5):
            vector[..., 0] = torch.nan
        return {
            "image": torch.randint(256, (*shape, 8, 8, 3), dtype=torch.uint8, generator=generator),
            "vector": vector,
            "inner": {
                "mask": mask.to(self.observation_spec["inner", "mask"].dtype),
                "count": torch.full(shape, self.steps % 10),
            },
        }

    def _reset(self, *_, **__):
        if self.fault == "reset":
            raise RuntimeError("no robot\nhere")
        self.steps = 0
        return TensorDict(self._shown(), self.batch_size)

    def _step(self, entries):
        if self.fault == "step" or (self.fault == "later" and self.steps > 5):
            raise RuntimeError("no power")
        self.steps += 1
        done = torch.full((*self.batch_size, 1), self.steps >= STEPS)
        reward = entries["action"].float()[..., None]
        if self.fault == "reward":
            reward = reward * torch.nan
        return TensorDict(
            {**self._shown(), "reward": reward, "done": done, "terminated": done.clone()}, self.batch_size
        )


def robot(batch: list[int] | None = None, fault: str | None = None, *, seeded: bool = True, whole: bool = False):
    return Robot(batch or (), fault, seeded=seeded, whole=whole)


@functools.cache
def shared():
    return Robot()


class Sees(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.vector, self.count = nn.Linear(192, 4), nn.Linear(3, 4), nn.Embedding(10, 4)

    def forward(self, image, vector, count):
        return self.image(image.flatten(-3).float() / 255) + self.vector(vector.float()) + self.count(count)


def masked(_observations, _actions):
    seen = TensorDictModule(Sees(), in_keys=["image", "vector", ("inner", "count")], out_keys=["logits"])
    keys = {"logits": "logits", "mask": ("inner", "mask")}
    return ProbabilisticActor(
        seen, in_keys=keys, distribution_class=lambda logits, mask: MaskedCategorical(logits=logits, mask=mask.bool())
    )


def scripted(_observations, _actions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        network = torch.jit.script(nn.Linear(3, 1, dtype=torch.float64))
    values = TensorDictModule(network, in_keys=["vector"], out_keys=["value"])
    return TensorDictSequential(values, TensorDictModule(lambda value: value[..., 0].long() * 0, ["value"], ["action"]))


def beyond(_observations, _actions):
    """Return a policy that sometimes chooses what there is not."""
    chosen = TensorDictModule(lambda count: count // 2, in_keys=[("inner", "count")], out_keys=["action"])
    return TensorDictSequential(chosen)


def endless(_observations, _actions):
    return TensorDictModule(lambda seen: seen[..., :1] / 0, in_keys=["observation"], out_keys=["action"])


def privileged(_observations, _actions):
    reads = TensorDictModule(lambda state: state.argmax(-1), in_keys=["state"], out_keys=["action"])
    return TensorDictSequential(reads)


def counted(_observations, _actions):
    return TensorDictModule(lambda steps: steps[..., 0] % 2, in_keys=["step_count"], out_keys=["action"])


class Team(EnvBase):
    """Two agents, each with a vector, and two choices of three."""

    def __init__(self):
        super().__init__(batch_size=[])
        self.observation_spec = Composite(agents=Composite(observation=Unbounded((2, 3)), shape=(2,)))
        self.action_spec = Composite(agents=Composite(action=Categorical(3, shape=(2,)), shape=(2,)))
        self.reward_spec = Composite(agents=Composite(reward=Unbounded((2, 1)), shape=(2,)))
        self.done_spec = Composite({key: Binary(1, dtype=torch.bool) for key in ("done", "terminated")})
        self.generator = torch.Generator()

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)

    def _shown(self):
        return {"agents": TensorDict({"observation": torch.randn(2, 3, generator=self.generator)}, [2])}

    def _reset(self, *_, **__):
        self.steps = 0
        return TensorDict(self._shown(), [])

    def _step(self, entries):
        self.steps += 1
        shown = self._shown()
        shown["agents"]["reward"] = entries["agents", "action"].float()[:, None]
        done = torch.tensor([self.steps >= STEPS])
        return TensorDict({**shown, "done": done, "terminated": done.clone()}, [])


def team():
    return Team()


def teammates(_observations, _actions):
    network = MLP(in_features=3, out_features=3, num_cells=[8])
    logits = TensorDictModule(network, in_keys=[("agents", "observation")], out_keys=[("agents", "logits")])
    return ProbabilisticActor(
        logits,
        in_keys=[("agents", "logits")],
        out_keys=[("agents", "action")],
        distribution_class=torch.distributions.Categorical,
    )


class Panel(gymnasium.Env):
    """Shows a dictionary, and takes a space of its own."""

    observation_space = gymnasium.spaces.Dict(
        {
            "screen": gymnasium.spaces.Box(0, 255, (4, 4), np.uint8),
            "inner": gymnasium.spaces.Dict({"room": gymnasium.spaces.Discrete(5)}),
            "word": gymnasium.spaces.Text(4),
        }
    )

    def __init__(self, kind="several"):
        self.action_space = {
            "several": gymnasium.spaces.MultiDiscrete([3, 2]),
            "alike": gymnasium.spaces.MultiDiscrete([3, 3]),
            "bits": gymnasium.spaces.MultiBinary(3),
            "shifted": gymnasium.spaces.Discrete(3, start=-1),
            "wheels": gymnasium.spaces.Box(-1, 1, (2,), np.float32),
            "entries": gymnasium.spaces.Dict(
                {"gear": gymnasium.spaces.Discrete(3), "wheel": gymnasium.spaces.Box(-1, 1, (2,), np.float32)}
            ),
        }[kind]

    def _shown(self):
        screen = self.np_random.integers(256, size=(4, 4), dtype=np.uint8)
        return {"screen": screen, "inner": {"room": int(self.np_random.integers(5))}, "word": "go"}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.steps = 0
        return self._shown(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._shown(), 1.0, self.steps >= STEPS, False, {}


gymnasium.register("Panel-v0", entry_point=Panel)


class Looks(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.screen, self.room = nn.Linear(16, size), nn.Embedding(5, size)

    def forward(self, screen, room):
        return self.screen(screen.flatten(-2).float() / 255) + self.room(room)


def looks(size):
    return TensorDictModule(Looks(size), in_keys=["screen", ("inner", "room")], out_keys=["logits"])


def choose_several(_observations, _actions):
    def choose(logits):
        return torch.stack([logits[..., :3].argmax(-1), logits[..., 3:].argmax(-1)], -1)

    return TensorDictSequential(looks(5), TensorDictModule(choose, in_keys=["logits"], out_keys=["action"]))


def choose_alike(_observations, _actions):
    choose = TensorDictModule(lambda logits: logits.unflatten(-1, (2, 3)), in_keys=["logits"], out_keys=["logits"])
    kind = torch.distributions.Categorical
    return ProbabilisticActor(TensorDictSequential(looks(6), choose), in_keys=["logits"], distribution_class=kind)


def choose_bits(_observations, _actions):
    kind = torch.distributions.Bernoulli
    return ProbabilisticActor(looks(3), in_keys=["logits"], distribution_class=kind)


def choose_entries(_observations, _actions):
    def choose(logits):
        return logits[..., :3].argmax(-1), logits[..., 3:].tanh()

    keys = ["gear", "wheel"]
    return TensorDictSequential(looks(5), TensorDictModule(choose, in_keys=["logits"], out_keys=keys))


def vector(observations, actions):
    """Return an actor of a vector, which reads ``observation``."""
    size, given = actions.shape[-1], observations["observation"]
    network = MLP(in_features=given.shape[-1], out_features=2 * size, num_cells=[8]).to(given.dtype)
    return ProbabilisticActor(
        TensorDictModule(nn.Sequential(network, NormalParamExtractor()), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": actions.space.low, "high": actions.space.high},
    )


def values(observations, actions):
    """Return a policy that chooses by values of ``observation``."""
    network = MLP(in_features=observations["observation"].shape[-1], out_features=actions.n, num_cells=[8])
    return QValueActor(network, in_keys=["observation"], spec=actions)


class Levels(nn.Module):
    """Chooses one of some levels for each number of a vector, by index or as one-hot vectors end to end."""

    def __init__(self, actions, size):
        super().__init__()
        self.sizes, self.one_hot = actions.nvec.tolist(), isinstance(actions, MultiOneHot)
        self.network = MLP(in_features=size, out_features=sum(self.sizes), num_cells=[8])

    def forward(self, observation):
        parts = [part.argmax(-1) for part in self.network(observation).split(self.sizes, -1)]
        if self.one_hot:
            return torch.cat([nn.functional.one_hot(*each) for each in zip(parts, self.sizes, strict=True)], -1).bool()
        return torch.stack(parts, -1)


def levels(observations, actions):
    key = "screen" if "screen" in observations.keys() else "observation"
    return TensorDictModule(Levels(actions, observations[key].shape[-1]), in_keys=[key], out_keys=["action"])


def normalised():
    norm = ObservationNorm(loc=0.3, scale=0.5, in_keys=["observation"], standard_normal=True)
    return [norm, StepCounter(), RewardSum(), InitTracker()]


def history(padding: str = "same"):
    return [DoubleToFloat(), CatFrames(3, -1, in_keys=["observation"], padding=padding)]


def joined():
    """Return transforms of which one asks the environment for its keys."""
    return [DoubleToFloat(), CatTensors(out_key="observation", del_keys=False)]


class Halves(Transform):
    """Makes two entries of one."""

    def __init__(self):
        super().__init__(in_keys=["observation"], out_keys=["place", "speed"])

    def _call(self, entries):
        place, speed = entries["observation"].chunk(2, -1)
        return entries.update({"place": place, "speed": 2 * speed})

    def _reset(self, _entries, reset):
        return self._call(reset)

    def transform_observation_spec(self, spec):
        spec["place"] = spec["speed"] = Unbounded((*spec["observation"].shape[:-1], 2))
        return spec


class Turned(Transform):
    """Shows a number more, and takes shares of a turn; its specs are those of one environment."""

    def __init__(self):
        super().__init__(["observation"], ["size"], ["action"], ["action"])

    def _call(self, entries):
        return entries.set("size", entries["observation"].norm(dim=-1, keepdim=True))

    def _reset(self, _entries, reset):
        return self._call(reset)

    def _inv_call(self, entries):
        return entries.set("action", 4 * entries["action"] - 2)

    def transform_observation_spec(self, spec):
        spec["size"] = Unbounded((1,))
        return spec

    def transform_action_spec(self, spec):
        spec["action"] = Bounded(0.0, 1.0, (1,))
        return spec


def turned():
    return [Turned(), CatTensors(["size", "observation"], "observation")]


def halves():
    return [Halves(), CatTensors(["speed", "place"], "observation")]


def remembered():
    """Return the history of what is no number: of a mask, and of a count."""
    keys = [("inner", "mask"), "counts"]
    return [
        DTypeCastTransform(torch.int64, torch.int16, in_keys=[("inner", "count")], out_keys=["count"]),
        UnsqueezeTransform(-1, in_keys=["count"], out_keys=["counts"], allow_positive_dim=True),
        CatFrames(3, -1, in_keys=keys, out_keys=["masks", "counts"]),
    ]


def remembering(_observations, _actions):
    """Return a policy that chooses by what :func:`remembered` makes."""
    values = nn.Linear(15, 4)
    network = TensorDictModule(
        lambda masks, counts: values(torch.cat([masks.float(), counts.float()], -1)), ["masks", "counts"], ["logits"]
    )
    network.values = values
    return TensorDictSequential(network, TensorDictModule(lambda logits: logits.argmax(-1), ["logits"], ["action"]))


class Wheel(Robot):
    """A robot whose action is a vector; each number has bounds of its own."""

    def __init__(self, batch, *, alike):
        super().__init__(batch)
        low = torch.tensor([-2.0, 0.0]).expand(*batch, 2)
        self.action_spec = Bounded(low if alike else low - torch.rand(*batch, 1), torch.full((*batch, 2), 3.0))

    def _step(self, entries):
        return super()._step(entries.clone().set("action", entries["action"][..., 0]))


def wheels(batch: list[int], *, alike: bool = True):
    """Return several wheels side by side, with a transform that reads the scale of actions off their specs."""
    return TransformedEnv(Wheel(batch, alike=alike), ActionScaling())


def steer(_observations, _actions):
    return TensorDictModule(
        nn.Sequential(nn.Linear(3, 2, dtype=torch.float64), nn.Tanh()), in_keys=["vector"], out_keys=["action"]
    )


def astray():
    return ObservationNorm(loc=0.3, scale=0.5, in_keys=["vector"])


def dashboard(intervals: list[int], *, categorical: bool):
    """Return an environment of two wheels, which have some positions each, and of three screens."""
    panel = GymEnv("Panel-v0", kind="wheels")
    seen = [
        FlattenObservation(-2, -1, in_keys=["screen"]),
        DTypeCastTransform(torch.uint8, torch.float32, in_keys=["screen"]),
        CatFrames(3, -1, in_keys=["screen"]),
        ObservationNorm(in_keys=["screen"]),
        ActionDiscretizer(num_intervals=torch.tensor(intervals), categorical=categorical),
    ]
    env = TransformedEnv(panel, Compose(*seen))
    env.transform[3].init_stats(10)
    return env


def breakout():
    """Return Breakout, seen as its memory, which starts at a chance moment and ends with each life."""
    env = GymEnv("ALE/Breakout-v5", obs_type="ram", frame_skip=4, categorical_action_encoding=True)
    return TransformedEnv(
        env,
        Compose(
            NoopResetEnv(5),
            EndOfLifeTransform(),
            DTypeCastTransform(torch.uint8, torch.float32, in_keys=["observation"]),
        ),
    )


def skipping():
    return FrameSkipTransform(4)


def pendulum(kind: str):
    """Return the pendulum, with a transform that has measured, or that changes its action."""
    makers = {
        "VecNorm": lambda: VecNorm(in_keys=["observation"]),
        "VecNormV2": lambda: VecNormV2(in_keys=["observation"]),
        "ObservationNorm": lambda: ObservationNorm(in_keys=["observation"]),
        "ActionScaling": lambda: Compose(ActionScaling(), RewardSum()),
        "ActionDiscretizer": lambda: ActionDiscretizer(num_intervals=5, categorical=True),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that VecNorm will be another class one day
        env = TransformedEnv(GymEnv("Pendulum-v1"), makers[kind]())
    if kind == "ObservationNorm":
        env.transform.init_stats(50)
    elif kind.startswith("Vec"):
        env.rollout(50)
    return env


def several(kind: str):
    """Return three pendulums side by side, in processes of their own, with transforms within and without."""
    batch = (SerialEnv if kind == "SerialEnv" else ParallelEnv)(3, functools.partial(pendulum, "ActionScaling"))
    return TransformedEnv(
        batch, Compose(ObservationNorm(0.3, 0.5, in_keys=["observation"]), CatFrames(2, -1, in_keys=["observation"]))
    )


def nothing_given():
    return ObservationNorm(in_keys=["observation"])


def measured_inside():
    """Return pendulums side by side, each with a transform of its own that has measured."""
    env = SerialEnv(2, lambda: TransformedEnv(GymEnv("Pendulum-v1"), VecNormV2(in_keys=["observation"])))
    env.rollout(30)
    return env


def unmeasured():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be another class one day
        return TransformedEnv(GymEnv("Pendulum-v1"), VecNorm(in_keys=["observation"]))
