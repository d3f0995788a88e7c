"""The player's command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Run
from .environments import environment_name, make_environment, play
from .errors import UserError, describe_refusal, refusal, stop_writing
from .gif import check_gif, write_gif
from .golden import GOLDEN, selftest
from .info import describe
from .manifest import MANIFEST, check_file, check_told, read_manifest
from .native_library import NATIVE, load_any_native
from .onnx_session import load_onnx
from .player import Player

MAX_SEED = 2**31 - 1  # of the emulator
ONNX = "policy.onnx"


def find_folder() -> Path | None:
    """Return the model folder that this package lies in; none if it does not lie in one."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / MANIFEST).is_file() else None


def load_program(folder: Path, manifest: dict[str, Any], *, native: bool) -> tuple[str, Run]:
    """Load the program to play with; return its name in the model folder, and the program.

    Raises:
        UserError: the folder has none of the kind, or it is damaged, cannot be loaded, or is not the manifest's.
    """
    if native:
        name, program = load_any_native(folder, manifest)
    elif ONNX not in manifest["files"] and NATIVE in manifest["files"]:
        raise UserError(f"{folder / MANIFEST}: lists no {ONNX}, but a native library: use --native")
    else:
        name, program = ONNX, load_onnx(check_file(folder, ONNX, manifest), manifest.get("onnx_session"))
    if program.facts is not None:
        check_told(program.facts, manifest, folder / name)
    return name, program


def replay_programs(folder: Path, manifest: dict[str, Any], *, native: bool) -> None:
    """Replay golden decisions with every program that the player runs, or with the native library only.

    Raises:
        UserError: a program cannot be loaded, or decides otherwise.
    """
    there = {ONNX: ONNX in manifest["files"] and not native, NATIVE: NATIVE in manifest["files"]}
    for kind in [kind for kind, found in there.items() if found] or [NATIVE if native else ONNX]:
        name, run = load_program(folder, manifest, native=kind == NATIVE)
        replayed = selftest(Player(run, manifest), check_file(folder, GOLDEN, manifest))
        print(f"selftest {manifest['policy']}, {name}: {replayed}", flush=True)


def play_full(player: Player, seed: int, gif: Path | None) -> tuple[float, int]:
    """Play one episode, write its screens to ``gif``, and return its score and number of decisions.

    The film has the screen that the episode begins with, and the one after every decision.
    """
    screens, score, steps = [], 0.0, 0
    if gif is not None:
        screens.append(make_environment(player.manifest, seed).observation)
    for reward, shown in play(player, seed):
        if gif is not None:
            screens.append(shown["observation"].copy())
        score += reward
        steps += 1
    if gif is not None:
        write_gif(gif, screens, milliseconds=player.manifest["environment"]["frame_skip"] * 1000 // 60)
    return score, steps


def run_player(options: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: the folder cannot be read, or a program of it cannot be loaded, or decides otherwise.
    """
    if options.gif is not None:
        check_gif(options.gif)
    manifest = read_manifest(options.folder)
    if options.info:
        print("\n".join(describe(options.folder, manifest)), flush=True)
        return
    if options.gif is not None and "rom" not in manifest["environment"]:
        raise UserError(f"--gif: draws Atari games only, {options.folder} plays {environment_name(manifest)!r}")
    if options.selftest:
        replay_programs(options.folder, manifest, native=options.native)
        return
    _, run = load_program(options.folder, manifest, native=options.native)
    player = Player(run, manifest)
    scores = []
    for episode in range(options.episodes):
        score, steps = play_full(player, options.seed + episode, options.gif if episode == 0 else None)
        scores.append(score)
        print(f"episode {episode + 1}/{options.episodes}  score {score:+g}  decisions {steps}", flush=True)
    told = f"mean score {np.mean(scores):.2f}  std {np.std(scores):.2f}  min {min(scores):g}  max {max(scores):g}"
    print(told, flush=True)


def fail(message: str) -> int:
    """Tell why the player ends, and return its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Run the player, and return its exit status.

    Args:
        arguments: those of the command line.
        program: how the player was started, for the usage message.
    """
    parser = argparse.ArgumentParser(prog=program, description="Play with an exported policy, without PyTorch.")
    found = find_folder()
    told = "model folder, such as models/dqn" if found is None else "model folder (default: the one of this player)"
    parser.add_argument("folder", type=Path, nargs=None if found is None else "?", default=found, help=told)
    parser.add_argument("--episodes", type=int, default=1, help="full episodes to play (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the next has the next seed")
    parser.add_argument("--gif", type=Path, help="write an Atari game's first episode to this .gif file (needs Pillow)")
    parser.add_argument("--native", action="store_true", help="play with a library of native instead of policy.onnx")
    parser.add_argument("--selftest", action="store_true", help=f"replay {GOLDEN} with each program")
    parser.add_argument("--info", action="store_true", help="tell what the folder holds instead of playing")
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        parser.error(f"--episodes is {options.episodes}, must be at least 1")
    if not 0 <= options.seed <= MAX_SEED - options.episodes:
        parser.error(f"--seed is {options.seed}, must be from 0 to {MAX_SEED - options.episodes}")
    try:
        run_player(options)
    except UserError as error:
        return fail(str(error))
    except OSError as error:
        if refusal(error) is None:
            raise
        stop_writing()
        return fail(describe_refusal(error))
    except KeyboardInterrupt:
        print("error: stopped by SIGINT", file=sys.stderr)
        return 130
    return 0
