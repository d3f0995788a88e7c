"""Play with an exported policy, without PyTorch: an Atari game, or another environment of gymnasium's.

Needs ``policy.onnx`` and ``manifest.json`` of one model folder, and numpy, onnxruntime and ale-py; gymnasium too for
what is no Atari game, and Pillow when a GIF is asked for. With ``--native``, the folder's ``native`` takes the place of
``policy.onnx`` and onnxruntime. Nothing else of this repository is needed: copy the folder and this file to a device.

    python play.py models/dqn --episodes 3 --gif pong.gif
    python play.py models/dqn --native --selftest
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import importlib.util
import json
import secrets
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ale_py
import ale_py.roms
import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
Action = int | npt.NDArray[np.float32]

SCHEMA_VERSION = 1
MANIFEST_KEYS = ("policy", "inputs", "outputs", "states", "environment", "actions", "files")
DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names that are not NumPy's
MAX_SEED = 2**31 - 1  # of the emulator
# How ONNX Runtime runs a program, where the manifest does not say otherwise: on one core, without busy waiting.
SESSION: dict[str, Any] = {
    "threads": 1,
    "spinning": False,
    "memory_pattern": True,
    "arena": True,
    "optimization": "all",
}
OPTIMIZATIONS = {
    "none": "DISABLE_ALL",
    "basic": "ENABLE_BASIC",
    "extended": "ENABLE_EXTENDED",
    "layout": "ENABLE_LAYOUT",
    "all": "ENABLE_ALL",
}
COPIED = 65536  # bytes of an array that are rather copied than found
NATIVE = "native/libpolicy.so"
GOLDEN_FILE = "native/golden.bin"
# What stands before the decisions: the policy's name, their number, bytes of an observation, an action and its values,
# and the largest difference of a value. Each decision then has one byte more, which is 1 where an episode starts.
GOLDEN_MAGIC, GOLDEN = b"GOLDEN1\n", "<64s4Qd"


class PlayError(Exception):
    """Something the user gave cannot be played; the message is one line."""


class Emulator:
    """One Atari console, driven one decision at a time.

    A decision is ``frame_skip`` emulator frames with the same action and the summed reward; it ends early when the game
    does. ``observation`` is the screen, ``(210, 160, 3)`` uint8, and is overwritten by every step. The same ``seed``
    and the same actions give the same screens, bit for bit.

    Args:
        rom: name of the game in ale-py, such as ``"pong"``.
        actions: the ALE action id of every action index.
        frame_skip: emulator frames a decision.
        repeat_action_probability: chance that a frame repeats the previous action (sticky actions).
        max_episode_steps: decisions after which an episode is cut off.
        seed: of the emulator's own random numbers.
    """

    def __init__(
        self,
        rom: str,
        actions: Sequence[int],
        *,
        frame_skip: int,
        repeat_action_probability: float,
        max_episode_steps: int,
        seed: int,
    ) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)  # read when the ROM is loaded, so it comes first
        self.ale.setFloat("repeat_action_probability", repeat_action_probability)
        self.ale.setInt("max_num_frames_per_episode", max_episode_steps * frame_skip)
        path = ale_py.roms.get_rom_path(rom)
        if path is None:
            raise PlayError(f"ale-py has no game called {rom!r}")
        self.ale.loadROM(path)
        by_id = {action.value: action for action in self.ale.getLegalActionSet()}
        self.actions = [by_id[ale_id] for ale_id in actions]
        self.frame_skip = frame_skip
        self.observation = np.empty((*self.ale.getScreenDims(), 3), np.uint8)
        self.ale.reset_game()
        self.ale.getScreenRGB(self.observation)

    @property
    def done(self) -> bool:
        return bool(self.ale.game_over())

    @property
    def state(self) -> bytes:
        """The console's 128 bytes of memory."""
        return self.ale.getRAM().tobytes()

    def step(self, action: Action) -> float:
        """Play one decision (an action index); returns its reward."""
        ale, ale_action, reward = self.ale, self.actions[int(action)], 0
        for _ in range(self.frame_skip):
            reward += ale.act(ale_action)
            if ale.game_over():
                break
        ale.getScreenRGB(self.observation)
        return reward


class GymEnvironment:
    """One of gymnasium's environments, driven as :class:`Emulator` is.

    Args:
        id: its name in gymnasium.
        max_episode_steps: decisions after which an episode is cut off.
        seed: of the environment's own random numbers.
    """

    def __init__(self, id: str, *, max_episode_steps: int, seed: int) -> None:  # noqa: A002
        try:
            import gymnasium
        except ImportError:
            raise PlayError(f"{id} needs gymnasium: pip install gymnasium") from None
        try:
            # As it was made for the training: gymnasium's checker refuses some that play well.
            self.env = gymnasium.make(id, max_episode_steps=max_episode_steps, disable_env_checker=True)
            observation, _ = self.env.reset(seed=seed)
        except ModuleNotFoundError as error:
            missing = getattr(error.__cause__ or error, "name", None)  # gymnasium's own has none
            raise PlayError(f"{id!r} needs the module {missing!r}, which is not there: put it beside play.py") from None
        except Exception as error:  # whatever the environment's own module and constructor raise
            raise PlayError(f"gymnasium does not make {id!r}: {' '.join(str(error).split())}") from None
        self.observation, self.done = self._observed(observation), False

    def _observed(self, observation: Any) -> npt.NDArray[Any]:
        """In the dtype that the environment tells of, which not every one keeps to."""
        return np.asarray(observation, self.env.observation_space.dtype)

    @property
    def state(self) -> bytes:
        """What is observed, the nearest thing to a state that every environment has."""
        return self.observation.tobytes()

    def step(self, action: Action) -> float:
        """Play one decision (an action index, or a vector); returns its reward."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.observation, self.done = self._observed(observation), bool(terminated or truncated)
        return float(reward)


Environment = Emulator | GymEnvironment


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a model folder.

    Raises:
        PlayError: it is missing, is not JSON, or has a schema this player does not know.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise PlayError(f"{path}: {error.strerror}; give a model folder that `dvc repro` has built") from None
    except ValueError as error:
        raise PlayError(f"{path}: damaged, not JSON ({error})") from None
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if found != SCHEMA_VERSION:
        raise PlayError(f"{path}: schema_version is {found!r}, this player reads {SCHEMA_VERSION}")
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing:
        raise PlayError(f"{path}: damaged: lacks {', '.join(missing)}")
    return manifest


def check_file(folder: Path, name: str, manifest: dict[str, Any]) -> Path:
    """The path of a file of the model folder, once its SHA-256 is the manifest's.

    Raises:
        PlayError: it is missing or is not the file that the manifest was written for.
    """
    path = folder / name
    if name not in manifest["files"]:
        raise PlayError(f"{folder / 'manifest.json'}: lists no {name}, only {', '.join(manifest['files'])}")
    expected = manifest["files"][name]["sha256"]
    try:
        found = sha256(path)
    except OSError as error:
        raise PlayError(f"{path}: {error.strerror}") from None
    if found != expected:
        raise PlayError(
            f"{path}: damaged or from another policy: its SHA-256 is {found}, manifest.json says {expected}"
        )
    return path


class Player:
    """A program with its memory: observations in, decisions out, for one or more episodes side by side.

    Args:
        run: the program; arrays by input name to arrays by output name.
        manifest: names, dtypes and shapes of its inputs, and which outputs are the next states.
        batch: number of episodes.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], manifest: dict[str, Any], batch: int = 1) -> None:
        self.run, self.manifest, self.batch = run, manifest, batch
        self.states = {state["output"]: state["input"] for state in manifest["states"]}
        names = [spec["name"] for spec in manifest["inputs"]]
        (self.observation,) = (name for name in names if name not in {*self.states.values(), "is_init"})
        self.reset()

    def reset(self) -> None:
        """Start all episodes: where ``is_init`` is true the program ignores the state that it is given."""
        self.feed = {
            spec["name"]: np.zeros([self.batch, *spec["shape"][1:]], spec["dtype"]) for spec in self.manifest["inputs"]
        }
        if self.states:
            self.feed["is_init"][...] = True
            self.going_on = np.zeros_like(self.feed["is_init"])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the episodes, in the order given."""
        self.feed = {name: array[list(rows)] for name, array in self.feed.items()}
        if self.states:
            self.going_on = np.zeros_like(self.feed["is_init"])

    def step(self, observations: npt.NDArray[Any]) -> Arrays:
        """All outputs for raw observations, such as ``(batch, 210, 160, 3)`` uint8 screens; the states move on."""
        self.feed[self.observation] = observations
        outputs = self.run(self.feed)
        if self.states:
            self.feed |= {name: outputs[output] for output, name in self.states.items()}
            self.feed["is_init"] = self.going_on
        return outputs

    def act(self, observation: npt.NDArray[Any]) -> Action:
        """The action for the one episode's observation: an index, or a float32 vector."""
        action = self.step(observation[None])["action"][0]
        return action if action.ndim else int(action)


class CheckedProgram:
    """A program that refuses inputs other than its own.

    Runtimes differ in what they refuse: some read the bytes of another dtype, or compute on any shape that happens to
    fit.

    Args:
        name: of the program, for messages.
        run: the program.
        inputs: ``name``, ``dtype`` and ``shape`` of each, the first size a batch's.
    """

    def __init__(self, name: str, run: Callable[[Arrays], Arrays], inputs: Sequence[dict[str, Any]]) -> None:
        self.name, self.run = name, run
        self.inputs = {spec["name"]: (np.dtype(spec["dtype"]), tuple(spec["shape"][1:])) for spec in inputs}

    def __call__(self, arrays: Arrays) -> Arrays:
        """All outputs.

        Raises:
            PlayError: an input is missing, unknown, of another dtype or shape, or has no rows or others than the rest;
                or the runtime fails.
        """
        rows = set()
        for name, (dtype, shape) in self.inputs.items():
            array = arrays.get(name)
            if not (isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim and array.shape[1:] == shape):
                raise PlayError(f"{self.name}: {self.complain(arrays)}")
            rows.add(len(array))
        if len(arrays) != len(self.inputs) or len(rows) != 1 or 0 in rows:
            raise PlayError(f"{self.name}: {self.complain(arrays)}")
        try:
            return self.run(arrays)
        except Exception as error:  # runtimes have no base class for theirs
            reason = str(error).splitlines() or [type(error).__name__]
            raise PlayError(f"{self.name}: does not run on {rows.pop()} rows: {reason[0]}") from error

    def complain(self, arrays: dict[str, Any]) -> str:
        """What is wrong with inputs."""
        kinds = {
            name: f"{dtype}[{', '.join(['batch', *map(str, shape)])}]" for name, (dtype, shape) in self.inputs.items()
        }
        if missing := [f"{name}, {kind}" for name, kind in kinds.items() if name not in arrays]:
            return f"input {missing[0]}, is missing; found {', '.join(arrays) or 'none'}"
        if unknown := [name for name in arrays if name not in kinds]:
            return f"input {unknown[0]} is unknown; expected {', '.join(kinds)}"
        for name, (dtype, shape) in self.inputs.items():
            array = arrays[name]
            if not isinstance(array, np.ndarray):
                return f"input {name} is a {type(array).__name__}, expected an array {kinds[name]}"
            if array.dtype != dtype or not array.ndim or array.shape[1:] != shape:
                return f"input {name} is {array.dtype}{list(array.shape)}, expected {kinds[name]}"
        rows = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        return f"inputs must have the same number of rows, at least 1, found {rows}"


def session_options(settings: dict[str, Any]) -> Any:
    """ONNX Runtime's options for some of the keys of ``SESSION``, which has the others.

    Raises:
        PlayError: a key is unknown, or its value is of another type or not among those allowed.
    """
    if not isinstance(settings, dict):
        raise PlayError(f"onnx_session is {settings!r}, expected some of {SESSION}")
    for name, value in settings.items():
        if name not in SESSION or type(value) is not type(SESSION[name]):
            raise PlayError(f"onnx_session: {name} is {value!r}, expected some of {SESSION}")
    chosen = SESSION | settings
    if chosen["optimization"] not in OPTIMIZATIONS:
        raise PlayError(f"onnx_session: optimization is {chosen['optimization']!r}, expected one of {OPTIMIZATIONS}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = chosen["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(chosen["spinning"])))
    options.enable_mem_pattern = chosen["memory_pattern"]
    options.enable_cpu_mem_arena = chosen["arena"]
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_{OPTIMIZATIONS[chosen['optimization']]}"
    )
    return options


def load_onnx(path: Path, settings: dict[str, Any] | None = None) -> Callable[[Arrays], Arrays]:
    """An ONNX program as a function of named arrays.

    One that explores draws other numbers after every load: ONNX Runtime has one seed for all that a process loads.

    Args:
        path: of the program.
        settings: what is to be other than in ``SESSION``; ``manifest.json`` has them as ``onnx_session``.

    Raises:
        PlayError: it cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError:
        raise PlayError(f"{path} needs onnxruntime: pip install onnxruntime") from None
    options = session_options(settings or {})
    onnxruntime.set_seed(secrets.randbits(31))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds share no base class
        raise PlayError(f"{path}: not a program that ONNX Runtime loads: {str(error).splitlines()[0]}") from None
    names = [output.name for output in session.get_outputs()]
    inputs = [
        {"name": spec.name, "dtype": DTYPES.get(kind, kind), "shape": spec.shape}
        for spec in session.get_inputs()
        for kind in (spec.type.removeprefix("tensor(").removesuffix(")"),)
    ]
    return CheckedProgram(str(path), lambda arrays: dict(zip(names, session.run(names, arrays), strict=True)), inputs)


class NativeArray(ctypes.Structure):
    """``policy_array`` of ``policy.h``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("bytes", ctypes.c_size_t),
        ("dimensions", ctypes.c_size_t),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("next", ctypes.c_int),
    )


def address(array: npt.NDArray[Any]) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


class NativeProgram:
    """A native library as a function of named arrays; rows are computed one after the other.

    Args:
        path: of the library.

    Raises:
        PlayError: it is no such library, or this processor lacks instructions that it was built for.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        try:
            self.library = ctypes.CDLL(str(path.resolve()))
            self.library.policy_message.restype = ctypes.c_char_p
            self.library.policy_close.argtypes = [ctypes.c_void_p]
            self.library.policy_close.restype = None
            self.inputs, self.outputs = self._arrays("policy_inputs"), self._arrays("policy_outputs")
            handle = ctypes.c_void_p()
            self.check(self.library.policy_open(ctypes.byref(handle)))
        except (OSError, AttributeError) as error:
            raise PlayError(f"{path}: not a policy's native library: {error}") from None
        weakref.finalize(self, self.library.policy_close, handle)
        given = {spec["name"]: np.empty(spec["shape"], spec["dtype"]) for spec in self.inputs}
        made = {spec["name"]: np.empty(spec["shape"], spec["dtype"]) for spec in self.outputs}
        places = (ctypes.c_void_p * len(given))(*map(address, given.values()))
        results = (ctypes.c_void_p * len(made))(*map(address, made.values()))
        # To copy a small array costs less than to find where it lies.
        self.small = [(name, array) for name, array in given.items() if array.nbytes <= COPIED]
        self.large = [(name, place) for place, (name, array) in enumerate(given.items()) if array.nbytes > COPIED]
        self.made, self.places = list(made.items()), places
        self.run = functools.partial(self.library.policy_run, handle, places, results)

    def _arrays(self, query: str) -> list[dict[str, Any]]:
        arrays, function = ctypes.POINTER(NativeArray)(), getattr(self.library, query)
        function.restype = ctypes.c_size_t
        return [
            {
                "name": array.name.decode(),
                "dtype": np.dtype(array.dtype.decode()),
                "shape": array.shape[: array.dimensions],
            }
            for array in arrays[: function(ctypes.byref(arrays))]
        ]

    def check(self, status: int) -> None:
        if status:
            raise PlayError(f"{self.path}: {self.library.policy_message(status).decode()}")

    def __call__(self, arrays: Arrays) -> Arrays:
        rows = len(next(iter(arrays.values())))
        if rows == 1:
            return self.decide(arrays)
        decided = [self.decide({name: array[row : row + 1] for name, array in arrays.items()}) for row in range(rows)]
        return {name: np.concatenate([outputs[name] for outputs in decided]) for name in decided[0]}

    def decide(self, arrays: Arrays) -> Arrays:
        """All outputs for one row."""
        with self.lock:
            for name, copy in self.small:
                copy[...] = arrays[name]
            held = [arrays[name] for name, _ in self.large]
            for index, (_, place) in enumerate(self.large):
                if not held[index].flags.c_contiguous:
                    held[index] = np.ascontiguousarray(held[index])
                self.places[place] = address(held[index])
            self.check(self.run())
            return {name: array.copy() for name, array in self.made}


def load_native(path: Path) -> Callable[[Arrays], Arrays]:
    """A native library as a function of named arrays, on one core.

    Raises:
        PlayError: it cannot be loaded, or is not for this processor.
    """
    program = NativeProgram(path)
    inputs = [{"name": spec["name"], "dtype": spec["dtype"], "shape": spec["shape"]} for spec in program.inputs]
    return CheckedProgram(str(path), program, inputs)


def load_any_native(folder: Path, manifest: dict[str, Any]) -> tuple[str, Callable[[Arrays], Arrays]]:
    """The first of a model folder's native libraries that is for this processor, by its name in the folder.

    Raises:
        PlayError: one is missing or damaged, or none can be loaded, and why the first cannot.
    """
    others = [name for name in manifest["files"] if Path(name).match("native/*/libpolicy.so")]
    refusals = []
    for name in (NATIVE, *others):
        path = check_file(folder, name, manifest)
        try:
            return name, load_native(path)
        except PlayError as error:
            refusals.append(error)
    raise refusals[0]


def value_names(manifest: dict[str, Any]) -> list[str]:
    """The outputs that an action was chosen by."""
    others = {"action", *(state["output"] for state in manifest["states"])}
    return [spec["name"] for spec in manifest["outputs"] if spec["name"] not in others]


def read_golden(path: Path, manifest: dict[str, Any]) -> tuple[npt.NDArray[Any], float]:
    """Golden decisions, and the largest difference of a value.

    Returns:
        an array of records, with ``starts`` (uint8), ``observation``, ``action`` and each value's name.

    Raises:
        PlayError: the file is missing, damaged, or of another policy.
    """
    specs = {spec["name"]: spec for spec in (*manifest["inputs"], *manifest["outputs"])}
    states = {state["input"] for state in manifest["states"]}
    (observation,) = (spec["name"] for spec in manifest["inputs"] if spec["name"] not in {*states, "is_init"})
    fields = [("observation", specs[observation])]
    fields += [(name, specs[name]) for name in ("action", *value_names(manifest))]
    record = np.dtype([("starts", "u1"), *((name, spec["dtype"], tuple(spec["shape"][1:])) for name, spec in fields)])
    start = len(GOLDEN_MAGIC) + struct.calcsize(GOLDEN)
    try:
        content = path.read_bytes()
        name, count, *sizes, tolerance = struct.unpack(GOLDEN, content[len(GOLDEN_MAGIC) : start])
        if not content.startswith(GOLDEN_MAGIC) or sum(sizes) + 1 != record.itemsize:
            raise ValueError("it has another form")
        if name.rstrip(b"\0").decode() != manifest["policy"]:
            raise ValueError(f"it is of the policy {name.rstrip(bytes(1)).decode()!r}")
        if count == 0 or not 0 <= tolerance < float("inf"):
            raise ValueError(f"it has {count} decisions, which may differ by {tolerance}")
        if len(content) - start != count * record.itemsize:
            raise ValueError(f"it has {len(content) - start} bytes of decisions, expected {count * record.itemsize}")
    except OSError as error:
        raise PlayError(f"{path}: {error.strerror}") from None
    except (ValueError, struct.error) as error:
        raise PlayError(f"{path}: not golden decisions of {manifest['policy']!r}: {error}") from None
    return np.frombuffer(content, record, offset=start), tolerance


def selftest(player: Player, path: Path) -> int:
    """Replay golden decisions, ``native/golden.bin`` of a model folder; returns how many there are.

    Raises:
        PlayError: one comes out otherwise, or the file cannot be read.
    """
    decisions, tolerance = read_golden(path, player.manifest)
    for number, expected in enumerate(decisions):
        if expected["starts"]:
            player.reset()
        found = player.step(expected["observation"][None])
        for name in ("action", *value_names(player.manifest)):
            allowed = tolerance if expected[name].dtype.kind == "f" else 0
            if not np.all(np.abs(np.subtract(found[name][0], expected[name], dtype=np.float64)) <= allowed):
                raise PlayError(
                    f"{path}: decision {number} comes out otherwise: {name} {found[name][0].tolist()}, "
                    f"expected {expected[name].tolist()}"
                )
    return len(decisions)


def make_environment(manifest: dict[str, Any], seed: int) -> Environment:
    """The environment that the manifest tells of, at the start of an episode.

    Raises:
        PlayError: it is not there.
    """
    environment = manifest["environment"]
    if "rom" not in environment:
        return GymEnvironment(environment["id"], max_episode_steps=environment["max_episode_steps"], seed=seed)
    return Emulator(
        environment["rom"],
        [action["ale_id"] for action in manifest["actions"]],
        frame_skip=environment["frame_skip"],
        repeat_action_probability=environment["repeat_action_probability"],
        max_episode_steps=environment["max_episode_steps"],
        seed=seed,
    )


def play(player: Player, seed: int) -> Iterator[tuple[float, npt.NDArray[Any]]]:
    """Play one episode; yields each decision's reward and the observation it led to.

    A screen is overwritten by the next step: copy it to keep it.
    """
    environment = make_environment(player.manifest, seed)
    player.reset()
    while not environment.done:
        yield environment.step(player.act(environment.observation)), environment.observation


def play_full(player: Player, seed: int, gif: Path | None) -> tuple[float, int]:
    """The score of one episode and its number of decisions; its screens are written to ``gif``."""
    screens, score, steps = [], 0.0, 0
    for reward, screen in play(player, seed):
        if gif is not None:
            screens.append(screen.copy())
        score += reward
        steps += 1
    if gif is not None:
        write_gif(gif, screens, milliseconds=player.manifest["environment"]["frame_skip"] * 1000 // 60)
    return score, steps


def write_gif(path: Path, screens: list[npt.NDArray[np.uint8]], milliseconds: int) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(screen) for screen in screens]
    try:
        first.save(path, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    except OSError as error:
        raise PlayError(f"{path}: {error.strerror or error}") from None


def check_gif(path: Path) -> None:
    """Fail before an episode is played in vain."""
    if importlib.util.find_spec("PIL") is None:
        raise PlayError("--gif needs Pillow: pip install pillow")
    if not path.parent.is_dir():
        raise PlayError(f"{path}: there is no folder {path.parent}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Play with an exported policy, without PyTorch.")
    parser.add_argument("folder", type=Path, help="model folder, such as models/dqn")
    parser.add_argument("--episodes", type=int, default=1, help="full episodes to play (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the next has the next seed")
    parser.add_argument("--gif", type=Path, help="write an Atari game's first episode to this file (needs Pillow)")
    parser.add_argument("--native", action="store_true", help="play with a library of native instead of policy.onnx")
    parser.add_argument("--selftest", action="store_true", help="replay native/golden.bin instead of playing")
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        parser.error(f"--episodes is {options.episodes}, must be at least 1")
    if not 0 <= options.seed <= MAX_SEED - options.episodes:
        parser.error(f"--seed is {options.seed}, must be from 0 to {MAX_SEED - options.episodes}")
    try:
        if options.gif is not None:
            check_gif(options.gif)
        manifest = read_manifest(options.folder)
        if options.gif is not None and "rom" not in manifest["environment"]:
            raise PlayError(f"--gif: draws Atari games only, {options.folder} plays {manifest['environment']['id']!r}")
        if options.native:
            name, run = load_any_native(options.folder, manifest)
        else:
            name = "policy.onnx"
            run = load_onnx(check_file(options.folder, name, manifest), manifest.get("onnx_session"))
        player = Player(run, manifest)
        if options.selftest:
            decisions = selftest(player, check_file(options.folder, GOLDEN_FILE, manifest))
            print(f"selftest {manifest['policy']}, {name}: {decisions} golden decisions, all as they were")
            return 0
        scores = []
        for episode in range(options.episodes):
            score, steps = play_full(player, options.seed + episode, options.gif if episode == 0 else None)
            scores.append(score)
            print(f"episode {episode + 1}/{options.episodes}  score {score:+g}  decisions {steps}", flush=True)
        print(f"mean score {np.mean(scores):.2f}  std {np.std(scores):.2f}  min {min(scores):g}  max {max(scores):g}")
    except PlayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
