"""The native library: it needs no PyTorch, refuses misuse, allocates nothing while it plays, and proves itself."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pipeline_helpers import ROOT, change_manifest, choose_programs
from safetensors.numpy import load_file, save_file

from policy_export.backends import runtimes
from policy_export.backends.manifest import write_manifest
from policy_export.backends.registry import quickest
from policy_export.benchmark.command import Command
from policy_export.config import params
from policy_export.device.command import main
from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN, Golden, read_golden, selftest
from policy_export.device.manifest import compare_told, read_manifest, sha256
from policy_export.device.native_library import NATIVE, load_native
from policy_export.device.onnx_session import load_onnx
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode
from policy_export.lowering.batch_one import lower_batch_one
from policy_export.lowering.golden import NATIVE_GOLDEN, write_native_golden
from policy_export.lowering.instructions import TARGETS, find_target
from policy_export.lowering.native import build as build_library
from policy_export.lowering.native import compile_target, generate, prove, write_facts
from policy_export.parity.libraries import check_libraries
from policy_export.program.archive import load_program
from policy_export.program.calls import wrap
from policy_export.program.golden import pick_steps, write_golden
from policy_export.program.made import read_record
from policy_export.stage.processes import processes
from stages.compile_native import compile_native
from stages.export_onnx import export_onnx

pytestmark = pytest.mark.slow

ALLOWED = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
WARNINGS = "-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow;-Werror"
OK, ARGUMENT, FILE, DAMAGED, WRONG, SEVERAL = 0, 1, 4, 5, 6, 8


def command(*words: str | Path, status: int = 0, stdin: bytes | None = None) -> str:
    done = subprocess.run(list(map(str, words)), input=stdin, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def folder(workspace, tmp_path_factory) -> Path:
    """Give a model folder with native libraries and golden decisions, all made by the stages' own functions."""
    place = tmp_path_factory.mktemp("native")
    shutil.copytree(workspace, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        choose_programs(place, "dqn", ["pt2", "onnx", "native"])
        compile_native("dqn")
        write_manifest("dqn")
    return place / "models/dqn"


@pytest.fixture(scope="module")
def generated(folder, tmp_path_factory) -> Path:
    """Give what the library is built from."""
    place = tmp_path_factory.mktemp("generated")
    program, facts = load_program(folder / "policy.pt2", "dqn")
    generate(lower_batch_one(program, facts["inputs"]), find_target("native"), place)
    write_facts(place / "facts.h", facts, place / "weights.bin")
    return place


@pytest.fixture(scope="module")
def build(generated, tmp_path_factory) -> Callable[..., Path]:
    def make(*options: str) -> Path:
        built = tmp_path_factory.mktemp("build")
        build_library(generated, find_target("native"), built, f"-DPOLICY_WARNINGS={WARNINGS}", *options)
        return built

    return make


@pytest.fixture
def library(folder) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(folder / "native/libpolicy.so"))
    loaded.policy_message.restype = ctypes.c_char_p
    loaded.policy_close.argtypes = [ctypes.c_void_p]
    return loaded


def open_handle(library: ctypes.CDLL) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    assert library.policy_open(ctypes.byref(handle)) == OK
    return handle


def golden(folder: Path) -> Golden:
    return read_golden(folder / GOLDEN, read_manifest(folder))


def needed(path: Path) -> set[str]:
    return set(re.findall(r"NEEDED.*\[(.*)\]", command("readelf", "--dynamic", "--wide", path)))


def test_nothing_but_the_c_and_c_plus_plus_libraries_is_needed(folder):
    libraries = [*folder.rglob("libpolicy.so"), *folder.rglob("native/**/policy")]
    assert len(libraries) == 4
    for path in libraries:
        assert needed(path) <= ALLOWED
        linked = {Path(line.split()[0]).name for line in command("ldd", path).splitlines()}
        assert {name for name in linked if "vdso" not in name} <= ALLOWED


def test_only_the_documented_functions_are_visible(folder):
    header = (folder / "native/policy.h").read_text()
    documented = set(re.findall(r"\b(policy_\w+)\(", header))
    for path in folder.rglob("libpolicy.so"):
        symbols = command("nm", "--dynamic", "--defined-only", path).splitlines()
        assert {line.split()[-1] for line in symbols} == documented


def test_two_policies_in_one_process_do_not_call_each_other(folder):
    for path in folder.rglob("libpolicy.so"):
        assert not re.search(r"\bpolicy_\w+", command("readelf", "--relocs", "--wide", path))


def test_library_is_little_more_than_its_weights(folder, generated):
    weights = (generated / "weights.bin").stat().st_size
    for path in folder.rglob("libpolicy.so"):
        assert path.stat().st_size <= weights + 1_000_000


def test_library_starts_without_the_model_s_own_code(folder):
    """Check this because the loader runs such code before the check of the processor."""
    for path in folder.rglob("libpolicy.so"):
        sections = command("readelf", "--section-headers", "--wide", path)
        assert re.search(r"\bmodel_initialisers\b", sections)


@pytest.mark.parametrize("name", ["native/libpolicy.so", "native/x86-64-v3/libpolicy.so"])
def test_library_decides_as_the_policy(folder, name):
    facts = read_manifest(folder)
    decisions = golden(folder)
    assert len(decisions) == params.load(ROOT / "params.yaml").golden.decisions
    native, onnx = Player(load_native(folder / name), facts), Player(load_onnx(folder / "policy.onnx"), facts)
    for starts, _, observations, expected in decisions:
        if starts:
            native.reset()
            onnx.reset()
        found, other = native.step(observations), onnx.step(observations)
        assert list(found) == list(other)
        for output, array in other.items():
            assert (found[output].dtype, found[output].shape) == (array.dtype, array.shape)
            np.testing.assert_allclose(found[output], array, rtol=0, atol=decisions.tolerance)
        assert found["action"] == expected["action"]


def test_rows_are_calls(folder):
    run, random = load_native(folder / "native/libpolicy.so"), np.random.default_rng(0)
    inputs = {
        "observation": random.integers(256, size=(5, 210, 160, 3), dtype=np.uint8),
        "frames": random.normal(size=(5, 1, 40, 40)).astype(np.float32),
        "is_init": random.integers(2, size=(5, 1)).astype(bool),
    }
    together = run(inputs)
    for row in range(5):
        for name, array in run({name: array[[row]] for name, array in inputs.items()}).items():
            np.testing.assert_array_equal(array, together[name][[row]])


def test_step_keeps_the_memory_and_reset_forgets_it(folder, library):
    decisions = golden(folder)
    handle, action, values = open_handle(library), ctypes.c_int64(), np.empty(6, np.float32)
    other, same = open_handle(library), ctypes.c_int64()
    for starts, _, observations, expected in decisions:
        if starts:
            assert library.policy_reset(handle) == library.policy_reset(other) == OK
        screen = observations["observation"]
        place = ctypes.c_void_p(values.ctypes.data)
        assert library.policy_step(handle, ctypes.c_void_p(screen.ctypes.data), ctypes.byref(action), place) == OK
        assert action.value == expected["action"]
        np.testing.assert_allclose(values, expected["action_value"][0], rtol=0, atol=decisions.tolerance)
        # Without values the decision is the same, and moves on all the same.
        assert library.policy_step(other, ctypes.c_void_p(screen.ctypes.data), ctypes.byref(same), None) == OK
        assert same.value == action.value
    library.policy_close(handle)
    library.policy_close(other)


def test_misuse_is_an_error_code(library, folder):
    handle, nothing = open_handle(library), ctypes.c_void_p()
    screen, action = np.zeros((210, 160, 3), np.uint8), ctypes.c_int64()
    place = ctypes.c_void_p(screen.ctypes.data)
    several = (ctypes.c_void_p * 3)(screen.ctypes.data, None, None)
    golden_file = str(folder / "native/golden.bin").encode()
    assert library.policy_open(nothing) == ARGUMENT
    assert library.policy_step(nothing, place, ctypes.byref(action), nothing) == ARGUMENT
    assert library.policy_step(handle, nothing, ctypes.byref(action), nothing) == ARGUMENT
    assert library.policy_step(handle, place, nothing, nothing) == ARGUMENT
    assert library.policy_step(handle, place, ctypes.byref(action), nothing) == OK
    assert library.policy_reset(nothing) == ARGUMENT
    assert library.policy_run(handle, nothing, several) == ARGUMENT
    assert library.policy_run(handle, several, several) == ARGUMENT
    assert library.policy_selftest(nothing, golden_file, nothing) == ARGUMENT
    assert library.policy_selftest(handle, nothing, nothing) == ARGUMENT
    assert library.policy_selftest(handle, b"/no/such/file", nothing) == FILE
    assert library.policy_selftest(handle, golden_file, nothing) == OK
    library.policy_close(handle)
    library.policy_close(nothing)
    messages = {library.policy_message(status) for status in range(10)}
    assert len(messages) == 10
    assert b"unknown status" in messages


def test_threads_with_handles_of_their_own(folder, library):
    decisions = golden(folder)
    golden_file, found = str(folder / "native/golden.bin").encode(), []

    def replay() -> None:
        handle, count = open_handle(library), ctypes.c_size_t()
        for _ in range(5):
            status = library.policy_selftest(handle, golden_file, ctypes.byref(count))
            found.append((status, count.value))
        library.policy_close(handle)

    threads = [threading.Thread(target=replay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(OK, len(decisions))] * 40


COUNTER = """
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
static size_t calls;
size_t allocations(void) { return calls; }
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_memalign(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
void *malloc(size_t n) { ++calls; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { ++calls; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { ++calls; return __libc_realloc(p, n); }
int posix_memalign(void **p, size_t a, size_t n) { ++calls; *p = __libc_memalign(a, n); return *p == NULL ? 12 : 0; }
void *aligned_alloc(size_t a, size_t n) { ++calls; return __libc_memalign(a, n); }
"""
PLAYER = """
#include <pthread.h>
#include <stdio.h>
#include "policy.h"
extern size_t allocations(void);
static unsigned char screen[210 * 160 * 3];
static policy *handle;
static size_t before, after;
static void *play(void *unused) {
    int64_t action; float values[6];
    (void)unused;
    before = allocations();
    for (int i = 0; i < 100; ++i) {
        if (i % 10 == 0) policy_reset(handle);
        screen[i] = (unsigned char)i;
        if (policy_step(handle, screen, &action, values) != POLICY_OK) return (void *)1;
    }
    after = allocations();
    return NULL;
}
int main(void) {
    pthread_t thread; void *failed;
    if (policy_open(&handle) != POLICY_OK) return 1;
    if (play(NULL) != NULL) return 2;
    printf("%zu ", after - before);
    pthread_create(&thread, NULL, play, NULL);
    pthread_join(thread, &failed);
    printf("%zu %d\\n", after - before, failed != NULL);
    policy_close(handle);
    return allocations() == 0;
}
"""


def count_allocations(player: str, built: Path, folder: Path) -> str:
    """Run a program in C that plays with a library, and return what it prints."""
    (folder / "counter.c").write_text(COUNTER)
    (folder / "player.c").write_text(player)
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/include'}", "-O1"]
    sources = [folder / "player.c", folder / "counter.c"]
    binary = folder / "player"
    command("gcc", *flags, *sources, f"-L{built}", "-lpolicy", f"-Wl,-rpath,{built}", "-pthread", "-o", binary)
    return command(binary)


def test_nothing_is_allocated_after_open(folder, tmp_path):
    assert count_allocations(PLAYER, folder / "native", tmp_path).splitlines()[-1] == "0 0 0"


def test_command(folder, tmp_path):
    native, decisions = folder / "native", golden(folder)
    for binary in (native / "policy", native / "x86-64-v3/policy"):
        assert f"{len(decisions)} golden decisions, all as they were" in command(binary, "selftest")
    told = command(native / "policy", "info").splitlines()
    assert told[0] == "policy dqn"
    assert "input observation uint8[1, 210, 160, 3]" in told
    assert "action 2 RIGHT" in told
    assert told[-1] == "verdict none: there is no verdict.json in the model folder"
    shutil.copytree(native, tmp_path / "native")
    (tmp_path / "verdict.json").write_text('{\n  "passed": true\n}\n')
    for binary in ("policy", "x86-64-v3/policy"):
        told = command(tmp_path / "native" / binary, "info").splitlines()
        assert told[-3:] == ["verdict {", 'verdict   "passed": true', "verdict }"]
    library = load_native(native / "libpolicy.so")
    assert compare_told(library.facts, read_manifest(folder)) is None
    played = command(native / "policy", "play", native / "golden.bin").splitlines()
    assert [int(line.split()[1]) for line in played] == decisions.outputs["action"].tolist()
    first = np.flatnonzero(decisions.starts)[1]
    screens = decisions.observations["observation"][:first].tobytes()
    (tmp_path / "screens").write_bytes(screens)
    assert command(native / "policy", "play", tmp_path / "screens").splitlines() == played[:first]
    assert command(native / "policy", "play", "-", stdin=screens).splitlines() == played[:first]
    times = r"decisions  p50 \S+ us  p90 \S+ us  p99 \S+ us  p99.9 \S+ us  longest \S+ us"
    assert re.fullmatch(rf"10 {times}\n", command(native / "policy", "bench", "10"))
    paced = command(native / "policy", "bench", "20", "--rate-hz", "100")
    assert re.fullmatch(rf"20 {times}  missed \d+ at 100 Hz\n", paced)
    missed = command(native / "policy", "bench", "--rate-hz", "1e6", "500")  # nobody decides in a microsecond
    assert int(re.search(r"missed (\d+) at 1e\+06 Hz", missed)[1]) >= 499


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "usage: policy info"),
        (["dance"], 2, "usage: policy info"),
        (["bench", "none"], 2, "usage: policy info"),
        (["bench", "10", "--rate-hz"], 2, "usage: policy info"),
        (["bench", "--rate-hz", "0"], 2, "usage: policy info"),
        (["bench", "--rate-hz", "50x"], 2, "usage: policy info"),
        (["play", "/no/such/file"], 1, "error: /no/such/file: No such file or directory"),
        (["selftest", "/no/such/file"], 1, "error: /no/such/file: No such file or directory"),
        (["selftest", "/"], 1, "error: /: not a file of golden"),
        (["play", "/"], 1, "error: /: Is a directory"),
    ],
)
def test_command_tells_mistakes(folder, words, status, message):
    assert command(folder / "native/policy", *words, status=status).startswith(message)


def test_observation_that_is_cut_off(folder):
    message = command(folder / "native/policy", "play", "-", status=1, stdin=bytes(100800 + 7))
    assert message.splitlines()[-1] == "error: -: observation 1 is cut off: 7 bytes of 100800"


def test_observation_that_cannot_be_read_is_not_called_cut_off(folder):
    """Check this with a file that fails in the middle: the last bytes of this process's stack, and none after them."""
    (stack,) = (line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[stack]"))
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        memory.seek(int(stack.split()[0].split("-")[1], 16) - 20)
        done = subprocess.run(
            [folder / "native/policy", "play", "-"], stdin=memory, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: -: Input/output error\n")


@pytest.mark.parametrize("words", [["info"], ["selftest"], ["bench", "10"], ["play", "native/golden.bin"]])
def test_what_cannot_be_written_is_an_error(folder, words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [folder / "native/policy", *words], cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_decisions_come_at_once_and_memory_is_small(folder, tmp_path, monkeypatch):
    """Check that a user who pipes in screens gets each decision before the next screen."""
    monkeypatch.chdir(folder.parents[1])
    measured = Command.of("dqn", read_manifest(folder), tmp_path)
    assert measured is not None
    started = measured.start()  # which reads the decision while the pipe is open
    assert started.peak_memory <= 32 * 1024


def test_policy_without_a_native_library_has_no_command(workspace, tmp_path):
    assert Command.of("dqn", read_manifest(workspace / "models/dqn"), tmp_path) is None


def damaged(path: Path, target: Path, weights: bytes) -> Path:
    """Return a copy with one byte of the weights changed, in the middle of them."""
    content = bytearray(path.read_bytes())
    at = content.find(weights) + len(weights) // 2
    assert at >= len(weights) // 2
    content[at] ^= 1
    target.write_bytes(content)
    target.chmod(0o755)
    return target


def test_one_changed_byte_of_the_weights_is_noticed(folder, generated, tmp_path):
    weights = (generated / "weights.bin").read_bytes()
    golden_file = folder / "native/golden.bin"
    binary = damaged(folder / "native/policy", tmp_path / "policy", weights)
    message = command(binary, "selftest", golden_file, status=1)
    assert message == "error: dqn: the weights are not those that the library was built with\n"
    loaded = ctypes.CDLL(str(damaged(folder / "native/libpolicy.so", tmp_path / "libpolicy.so", weights)))
    assert loaded.policy_selftest(open_handle(loaded), str(golden_file).encode(), None) == DAMAGED


@pytest.mark.parametrize("name", ["native/libpolicy.so", "policy.onnx"])
def test_player_notices_a_changed_byte(folder, tmp_path, name, capsys):
    copy = shutil.copytree(folder, tmp_path / "dqn")
    options = [str(copy), "--selftest", *(["--native"] if "native" in name else [])]
    assert main(options) == 0
    assert "golden decisions, all as they were" in capsys.readouterr().out
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "changed").write_bytes(content)
    (tmp_path / "changed").replace(copy / name)  # this process has loaded what lies there
    assert main(options) == 1
    assert "its SHA-256 is" in capsys.readouterr().err


def replace_library(folder: Path, name: str, content: bytes) -> None:
    """Put another file into a model folder, and into its manifest."""
    (folder / name).write_bytes(content)
    change_manifest(folder, lambda manifest: manifest["files"][name].update(sha256=sha256(folder / name)))


def test_player_takes_the_library_that_loads(folder, tmp_path, capsys):
    one, none = (shutil.copytree(folder, tmp_path / name) for name in ("one", "none"))
    for place, name in ((one, "libpolicy.so"), (none, "libpolicy.so"), (none, "x86-64-v3/libpolicy.so")):
        replace_library(place, f"native/{name}", b"for another machine")
    assert main([str(one), "--selftest", "--native"]) == 0
    assert capsys.readouterr().out.startswith("selftest dqn, native/x86-64-v3/libpolicy.so: ")
    assert main([str(none), "--selftest", "--native"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {none}/native/libpolicy.so: not a policy's native library")


def test_player_notices_another_decision(folder, tmp_path):
    facts, path, changed = read_manifest(folder), tmp_path / "golden.bin", load_file(folder / GOLDEN)
    last = len(changed["tie"]) - 1
    changed["output/action"][last] ^= 1
    changed["tie"][last] = False
    save_file(changed, tmp_path / GOLDEN)
    write_native_golden(path, read_golden(tmp_path / GOLDEN, facts), facts)
    with pytest.raises(UserError, match=rf"decision {last} comes out otherwise: action \d, expected \d .*no rounding"):
        selftest(Player(load_native(folder / "native/libpolicy.so"), facts), tmp_path / GOLDEN)
    assert "a golden decision comes out otherwise" in command(folder / "native/policy", "selftest", path, status=1)


PLAY = """
import sys
from policy_export.device.command import main

assert main([sys.argv[1], "--native"]) == 0
print(*{"onnxruntime", "torch"} & set(sys.modules))
"""


def test_player_plays_natively_without_onnxruntime(folder):
    done = command(sys.executable, "-c", PLAY, folder).splitlines()
    assert re.match(r"episode 1/1  score [-+]\d+  decisions 300$", done[0])
    assert done[-1] == ""


def test_model_folder_without_onnx_plays_natively(folder, tmp_path):
    """Check that the folder is complete by moving it to a place where nothing else is."""
    project = tmp_path / "project"
    shutil.copytree(folder.parents[1], project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        choose_programs(project, "dqn", ["pt2", "native"])
        export_onnx("dqn")
        write_manifest("dqn")
    model = (project / "models/dqn").rename(tmp_path / "dqn")
    shutil.rmtree(project)
    assert quickest(read_manifest(model)) == "native"
    message = f"error: {model}/manifest.json: lists no policy.onnx, but a native library: use --native\n"
    assert command(sys.executable, model / "player", status=1) == message
    assert command(sys.executable, model / "player", "--native", "--selftest").startswith(f"selftest dqn, {NATIVE}: ")
    played = command(sys.executable, model / "player", "--native").splitlines()
    assert re.match(r"episode 1/1  score [-+]\d+  decisions 300$", played[0])


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
def test_rust_replays_golden_decisions(folder, tmp_path):
    native, built = folder / "native", tmp_path / "selftest"
    source = ROOT / "examples/golden/selftest.rs"
    options = ["--edition", "2021", "-D", "warnings", "-L", native, "-l", "policy"]
    command("rustc", *options, source, f"-Clink-arg=-Wl,-rpath,{native}", "-o", built)
    assert "64 golden decisions, all as they were" in command(built, folder)
    (tmp_path / "dqn").mkdir()
    facts, golden = read_manifest(folder), read_golden(folder / GOLDEN, read_manifest(folder))
    for change, status in ((4e-6, 0), (3e-5, 1)):
        golden.outputs["action_value"] = golden.outputs["action_value"] + np.float32(change)
        write_native_golden(tmp_path / "dqn" / NATIVE_GOLDEN, golden, facts)
        told = command(built, tmp_path / "dqn", status=status)
        assert ("64 of them but for rounding" if status == 0 else "comes out otherwise, by more than rounding") in told


def test_native_files_are_recorded_and_listed(folder):
    """Check the records of the files as they are, with the versions that made them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parents[1])
        record = read_record("dqn", "native")
    there = {
        path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("native/**/*") if path.is_file()
    }
    assert len(there) == 6
    assert record == {"made": True, "versions": {"torch": metadata.version("torch")}, "files": there}
    listed = read_manifest(folder)["files"]
    assert {name: listed[name]["sha256"] for name in listed if name.startswith("native/")} == there


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_golden_file_that_is_cut_off(folder, tmp_path, keep):
    path = tmp_path / "golden.bin"
    path.write_bytes((folder / "native/golden.bin").read_bytes()[:keep])
    assert "not a file of golden decisions" in command(folder / "native/policy", "selftest", path, status=1)


@pytest.mark.parametrize(
    ("place", "changed"),
    [(72, struct.pack("<Q", 0)), (104, struct.pack("<d", np.inf)), (104, struct.pack("<d", np.nan))],
    ids=["no decisions", "infinite tolerance", "tolerance that is no number"],
)
def test_golden_file_that_proves_nothing(folder, tmp_path, place, changed):
    content, path = bytearray((folder / "native/golden.bin").read_bytes()), tmp_path / "golden.bin"
    content[place : place + 8] = changed
    path.write_bytes(content if place > 72 else content[:112])
    for word in ("selftest", "play"):
        assert "not a file of golden decisions" in command(folder / "native/policy", word, path, status=1)


def test_compiled_command_that_decides_otherwise_is_an_error(folder, tmp_path):
    content, path = bytearray((folder / "native/golden.bin").read_bytes()), tmp_path / "golden.bin"
    content[112 + 1 + 100800] ^= 1  # the first action
    path.write_bytes(content)
    prove(folder / "native/policy", folder / "native/golden.bin")
    with pytest.raises(
        UserError, match=r"policy does not decide as .*: a golden decision comes out otherwise, by more than"
    ):
        prove(folder / "native/policy", path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no library" * 100), "not a policy's native library: .*invalid ELF header"),
        (lambda _path: None, "not a policy's native library: .*No such file"),
        (
            lambda path: command("gcc", "-shared", "-x", "c", "/dev/null", "-o", path),
            "not a policy's native library: .*undefined symbol: policy_message",
        ),
    ],
)
def test_what_is_no_library_is_refused(tmp_path, make, message):
    path = tmp_path / "libpolicy.so"
    make(path)
    with pytest.raises(UserError, match=message):
        load_native(path)
    with pytest.raises(UserError, match=message):
        runtimes.load(path, 1)


class TakesMode(torch.nn.Module):
    def forward(self, observation: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"action": observation.mode(-1).indices}


class TakesHistogram(torch.nn.Module):
    def forward(self, observation: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"action": observation.histc(3).argmax(-1, keepdim=True)}


@pytest.mark.parametrize(
    ("module", "operator"), [(TakesMode, "the most frequent number (mode)"), (TakesHistogram, "`histc`")]
)
def test_operator_that_needs_pytorch_is_named_however_late(tmp_path, module, operator):
    """Check operators that are found only in the generated code, by name, or as missing when it is linked."""
    inputs = [{"name": "observation", "dtype": "float32", "shape": ["batch", 4]}]
    program = torch.export.export(module(), (), {"observation": torch.zeros(1, 4)})
    facts = {"policy": "refused", "actions": [], "states": [], "inputs": inputs}
    facts["outputs"] = [{"name": "action", "dtype": "int64", "shape": ["batch"]}]
    target = find_target("native")

    def compile_it() -> None:
        generate(lower_batch_one(program, inputs), target, tmp_path)
        write_facts(tmp_path / "facts.h", facts, tmp_path / "weights.bin")
        build_library(tmp_path, target, tmp_path / "build")

    with pytest.raises(UserError, match=rf"only PyTorch's library computes: {re.escape(operator)}"):
        compile_it()


class TakesSeveral(torch.nn.Module):
    """Chooses one of six, as far as a mask allows it, and pushes in two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = torch.nn.Linear(84, 8), torch.nn.Linear(5, 8, dtype=torch.float64)
        self.memory = torch.nn.GRUCell(16, 4)
        self.logits, self.push = torch.nn.Linear(4, 6), torch.nn.Linear(4, 2)

    def forward(
        self,
        image: torch.Tensor,
        vector: torch.Tensor,
        mask: torch.Tensor,
        memory: torch.Tensor,
        is_init: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        seen = torch.cat([self.image(image.flatten(1) / 255), self.vector(vector).float()], -1)
        after = self.memory(seen, torch.where(is_init, 0.0, memory))
        logits = torch.where(mask, self.logits(after), -torch.inf)
        return {
            "choice": logits.argmax(-1),
            "push": self.push(after).tanh(),
            "logits": logits,
            "sum": vector.sum(-1),
            "next_memory": after,
        }


SEVERAL_FACTS = {
    "policy": "several",
    "action_names": ["choice", "push"],
    "actions": {
        "entries": {"choice": {"kind": "index", "sizes": [6]}, "push": {"kind": "vector", "low": None, "high": None}}
    },
    "states": [{"input": "memory", "output": "next_memory"}],
    "inputs": [
        {"name": "image", "dtype": "uint8", "shape": ["batch", 4, 7, 3]},
        {"name": "vector", "dtype": "float64", "shape": ["batch", 5]},
        {"name": "mask", "dtype": "bool", "shape": ["batch", 6]},
        {"name": "memory", "dtype": "float32", "shape": ["batch", 4]},
        {"name": "is_init", "dtype": "bool", "shape": ["batch", 1]},
    ],
    "outputs": [
        {"name": "choice", "dtype": "int64", "shape": ["batch"]},
        {"name": "push", "dtype": "float32", "shape": ["batch", 2]},
        {"name": "logits", "dtype": "float32", "shape": ["batch", 6]},
        {"name": "sum", "dtype": "float64", "shape": ["batch"]},
        {"name": "next_memory", "dtype": "float32", "shape": ["batch", 4]},
    ],
}
SEVERAL_BYTES = 84 + 5 * 8 + 6  # of its observations
STEPS = 12


class Several(NamedTuple):
    """A policy with three observations and two actions: what its library is built from, and what it should decide."""

    generated: Path
    built: Path
    golden: Path
    observations: dict[str, np.ndarray]
    outputs: list[dict[str, np.ndarray]]

    def at(self, step: int) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(array[step])[None] for name, array in self.observations.items()}


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Several:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    observations = {
        "image": random.integers(256, size=(STEPS, 4, 7, 3), dtype=np.uint8),
        "vector": random.normal(size=(STEPS, 5)),
        "mask": random.integers(2, size=(STEPS, 6)).astype(bool) | np.eye(6, dtype=bool)[np.arange(STEPS) % 6],
    }
    inputs = SEVERAL_FACTS["inputs"]
    examples = {
        spec["name"]: torch.zeros([1, *spec["shape"][1:]], dtype=getattr(torch, spec["dtype"])) for spec in inputs
    }
    program = torch.export.export(TakesSeveral(), (), examples)
    generated, built = tmp_path_factory.mktemp("several"), tmp_path_factory.mktemp("several_built")
    target = find_target("native")
    generate(lower_batch_one(program, inputs), target, generated)
    write_facts(generated / "facts.h", SEVERAL_FACTS, generated / "weights.bin")
    build_library(generated, target, built, f"-DPOLICY_WARNINGS={WARNINGS}")
    run = wrap(program.module())
    nothing = np.zeros(STEPS)
    episode = Episode(0, 0.0, np.empty((STEPS, 0)), nothing.astype(np.float32), nothing.astype(np.uint64), observations)
    path = built / "golden.bin"
    assert write_golden(built / GOLDEN, run, episode, SEVERAL_FACTS, count=8, tolerance=1e-5) == 8
    write_native_golden(path, read_golden(built / GOLDEN, SEVERAL_FACTS), SEVERAL_FACTS)
    player, outputs = Player(run, SEVERAL_FACTS), []
    made = Several(generated, built, path, observations, outputs)
    outputs.extend(player.step(made.at(step)) for step in range(STEPS))
    return made


def load_several(several: Several) -> ctypes.CDLL:
    library = ctypes.CDLL(str(several.built / "libpolicy.so"))
    library.policy_message.restype = ctypes.c_char_p
    library.policy_close.argtypes = [ctypes.c_void_p]
    for count in (library.policy_observations, library.policy_action_outputs, library.policy_values):
        count.restype = ctypes.c_size_t
    return library


def pointers(*arrays: np.ndarray | None) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(None if array is None else array.ctypes.data for array in arrays))


def test_several_observations_and_actions_by_place_and_by_name(several):
    library = load_several(several)
    assert (library.policy_observations(), library.policy_action_outputs(), library.policy_values()) == (3, 2, 2)
    for query, specs in (
        (library.policy_input, SEVERAL_FACTS["inputs"]),
        (library.policy_output, SEVERAL_FACTS["outputs"]),
    ):
        assert [query(spec["name"].encode()) for spec in specs] == list(range(len(specs)))
        assert query(b"imag") == query(b"images") == query(b"") == query(None) == -1
    assert library.policy_actions(None) == 0
    by_place, by_name, without = (open_handle(library) for _ in range(3))
    for step, expected in enumerate(several.outputs):
        shown = several.at(step)
        given = pointers(shown["image"], shown["vector"], shown["mask"])
        made = {spec["name"]: np.zeros_like(expected[spec["name"]]) for spec in SEVERAL_FACTS["outputs"][:4]}
        choice, push, logits, total = made.values()
        assert library.policy_decide(by_place, given, pointers(choice, push), pointers(logits, total)) == OK
        for name, found in made.items():
            np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5)
        observations, decided = [None] * 3, [None] * 4
        for name, array in reversed(shown.items()):
            observations[library.policy_input(name.encode())] = array
        for name in reversed(made):
            decided[library.policy_output(name.encode())] = np.zeros_like(made[name])
        # A value that is not wanted, and no values at all, leave the decision and the memory as they are.
        wanted = pointers(None, decided[3])
        assert library.policy_decide(by_name, pointers(*observations), pointers(*decided[:2]), wanted) == OK
        for index, (name, found) in enumerate(made.items()):
            np.testing.assert_array_equal(decided[index], np.zeros_like(found) if name == "logits" else found)
        again = np.zeros_like(choice), np.zeros_like(push)
        assert library.policy_decide(without, given, pointers(*again), None) == OK
        np.testing.assert_array_equal(again[0], choice)
        np.testing.assert_array_equal(again[1], push)
    library.policy_reset(by_place)
    first = several.at(0)
    assert library.policy_decide(by_place, pointers(*first.values()), pointers(choice, push), None) == OK
    np.testing.assert_allclose(push, several.outputs[0]["push"], rtol=0, atol=1e-5)
    for handle in (by_place, by_name, without):
        library.policy_close(handle)


def test_misuse_of_several_is_an_error_code(several):
    library = load_several(several)
    handle, shown = open_handle(library), several.at(0)
    choice, push = np.zeros(1, np.int64), np.zeros((1, 2), np.float32)
    given, actions = pointers(*shown.values()), pointers(choice, push)
    assert library.policy_step(handle, given, actions, None) == SEVERAL
    assert b"call policy_decide" in library.policy_message(SEVERAL)
    assert library.policy_decide(None, given, actions, None) == ARGUMENT
    assert library.policy_decide(handle, None, actions, None) == ARGUMENT
    assert library.policy_decide(handle, given, None, None) == ARGUMENT
    assert library.policy_decide(handle, pointers(shown["image"], None, shown["mask"]), actions, None) == ARGUMENT
    assert library.policy_decide(handle, given, pointers(choice, None), None) == ARGUMENT
    assert library.policy_decide(handle, given, actions, None) == OK
    library.policy_close(handle)


def test_policy_of_one_observation_decides_by_pointers_too(folder, library):
    screen, values = golden(folder).observations["observation"][0], np.zeros((2, 6), np.float32)
    actions, handle = np.zeros(2, np.int64), open_handle(library)
    step = map(ctypes.c_void_p, (screen.ctypes.data, actions.ctypes.data, values.ctypes.data))
    assert library.policy_step(handle, *step) == OK
    assert library.policy_reset(handle) == OK
    assert library.policy_decide(handle, pointers(screen), pointers(actions[1:]), pointers(values[1])) == OK
    assert actions[0] == actions[1]
    np.testing.assert_array_equal(*values)
    library.policy_close(handle)


def test_golden_decisions_of_several(several, tmp_path):
    decisions = read_golden(several.built / GOLDEN, SEVERAL_FACTS)
    assert (len(decisions), decisions.tolerance) == (8, 1e-5)
    assert np.isneginf(decisions.outputs["logits"]).any()
    steps = [step for stretch in pick_steps(STEPS, 8) for step in stretch]
    for name, array in several.observations.items():
        np.testing.assert_array_equal(decisions.observations[name], array[steps])
    player = Player(load_native(several.built / "libpolicy.so"), SEVERAL_FACTS)
    assert selftest(player, several.built / GOLDEN).decisions == 8
    assert command(several.built / "policy", "selftest").startswith(
        "selftest several: 8 golden decisions, all as they were"
    )
    for name, array in decisions.outputs.items():
        changed = {**decisions.outputs, name: array.copy()}
        at = (7, *[0] * (array.ndim - 1))
        changed[name][at] += 1
        path = tmp_path / name
        write_native_golden(path, dataclasses.replace(decisions, outputs=changed), SEVERAL_FACTS)
        message = command(several.built / "policy", "selftest", path, status=1)
        told = f"after 7 decisions of {path}: a golden decision comes out otherwise, by more than rounding\n"
        assert message.endswith(told)
        save_file(load_file(several.built / GOLDEN) | {f"output/{name}": changed[name]}, path)
        with pytest.raises(UserError, match=f"decision 7 comes out otherwise: {name} .*; no rounding explains that"):
            selftest(player, path)


def test_rounding_is_told_from_damage(several, tmp_path):
    """Check this by values of another build: near what was recorded, and with another choice where two are tied."""
    decisions, path = read_golden(several.built / GOLDEN, SEVERAL_FACTS), tmp_path / "golden"
    player, file = Player(load_native(several.built / "libpolicy.so"), SEVERAL_FACTS), load_file(several.built / GOLDEN)
    same = selftest(player, several.built / GOLDEN)
    assert not decisions.ties.any()
    for off, tie, other, told in [
        (0.0, False, 0, None),
        (5e-6, False, 0, (8, 0)),
        (3e-5, False, 0, "sum"),
        (5e-6, True, 1, (8, 1)),
        (5e-6, False, 1, "choice"),
        (3e-5, True, 1, "sum"),
    ]:
        outputs = {**decisions.outputs, "sum": decisions.outputs["sum"] + off}
        outputs["choice"] = (outputs["choice"] + other * (np.arange(8) == 7)) % 6
        ties = np.full(8, tie)
        changed = dataclasses.replace(decisions, ties=ties, outputs=outputs)
        write_native_golden(path, changed, SEVERAL_FACTS)
        failed = isinstance(told, str)
        message = command(several.built / "policy", "selftest", path, status=int(failed))
        assert ("by more than rounding" in message) == failed
        arrays = {"output/sum": outputs["sum"], "output/choice": outputs["choice"], "tie": ties}
        save_file(file | arrays, path)
        if failed:
            with pytest.raises(UserError, match=rf"comes out otherwise: {told} "):
                selftest(player, path)
            continue
        replayed = selftest(player, path)
        assert (replayed.rounded, replayed.ties) == (told or (same.rounded, 0))
        assert told is None or "8 of them but for rounding" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": np.array([np.nan])}, "tolerance is .nan., must be one number that is finite"),
        ({"tolerance": np.zeros(2)}, "tolerance is .0.0, 0.0., must be one number"),
        ({"output/sum": np.zeros(8, np.float32)}, r"output/sum is float32\[\], expected float64\[\]"),
        ({"output/other": np.zeros(8)}, r"output/other is float64\[\], expected None"),
        ({"tie": np.zeros(7, bool)}, r"its tensors have \[7, 8\] decisions"),
    ],
)
def test_golden_decisions_that_are_damaged(several, tmp_path, change, message):
    save_file(load_file(several.built / GOLDEN) | change, tmp_path / GOLDEN)
    with pytest.raises(UserError, match=f"not golden decisions of 'several': {message}"):
        read_golden(tmp_path / GOLDEN, SEVERAL_FACTS)
    (tmp_path / GOLDEN).write_bytes((several.built / GOLDEN).read_bytes()[:500])
    with pytest.raises(UserError, match="not golden decisions of 'several': "):
        read_golden(tmp_path / GOLDEN, SEVERAL_FACTS)


def test_command_of_several(several):
    binary, decisions = several.built / "policy", read_golden(several.built / GOLDEN, SEVERAL_FACTS)
    told = command(binary, "info").splitlines()
    assert "input vector float64[1, 5]" in told
    assert "output push float32[1, 2]" in told
    played = [line.split() for line in command(binary, "play", several.golden).splitlines()]
    for number, (words, (_, _, _, expected)) in enumerate(zip(played, decisions, strict=True)):
        assert words[:2] == [str(number), str(expected["choice"][0])]
        numbers = [*expected["push"][0], *expected["logits"][0], expected["sum"][0]]
        np.testing.assert_allclose(np.array(words[2:], float), numbers, rtol=0, atol=1e-5)
    raw = [b"".join(array.tobytes() for array in several.at(step).values()) for step in range(STEPS)]
    lines = command(binary, "play", "-", stdin=b"".join(raw)).splitlines()
    assert [int(line.split()[1]) for line in lines] == [int(outputs["choice"][0]) for outputs in several.outputs]
    message = command(binary, "play", "-", status=1, stdin=raw[0] + raw[1][:90])
    assert message.splitlines()[-1] == f"error: -: observation 1 is cut off: 90 bytes of {SEVERAL_BYTES}"
    assert re.search(r"^10 decisions  p50 \d", command(binary, "bench", "10"))


DECIDER = """
#include <stdio.h>
#include "policy.h"
extern size_t allocations(void);
int main(void) {
    static _Alignas(64) unsigned char memory[8][4096];
    const void *const observations[] = {memory[0], memory[1], memory[2]};
    void *const actions[] = {memory[3], memory[4]}, *const values[] = {memory[5], NULL};
    policy *handle;
    if (policy_open(&handle) != POLICY_OK) return 1;
    const size_t before = allocations();
    for (int i = 0; i < 100; ++i) {
        if (i % 10 == 0) policy_reset(handle);
        memory[0][i] = memory[2][i % 6] = (unsigned char)(i % 2);
        if (policy_decide(handle, observations, actions, i % 3 == 0 ? NULL : values) != POLICY_OK) return 2;
    }
    printf("%zu\\n", allocations() - before);
    policy_close(handle);
    return before == 0;
}
"""


def test_nothing_is_allocated_after_open_for_several(several, tmp_path):
    assert count_allocations(DECIDER, several.built, tmp_path) == "0\n"


def test_sanitizers_find_nothing_in_several(several, tmp_path):
    sanitizer, built = "address,undefined", tmp_path / "build"
    options = (f"-DPOLICY_WARNINGS={WARNINGS}", f"-DPOLICY_SANITIZE={sanitizer}")
    build_library(several.generated, find_target("native"), built, *options)
    for word in ("selftest", "play"):
        command(built / "policy", word, several.golden)
    stress = driver(ROOT / "tests/native/stress.cpp", built, tmp_path / "stress", sanitizer)
    command(stress, several.golden)
    fuzz = driver(ROOT / "tests/native/fuzz.cpp", built, tmp_path / "fuzz", sanitizer)
    fuzz_calls(fuzz, several.golden)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang is not installed")
def test_clang_builds_it_without_warnings(build, folder):
    built = build("-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++")
    assert needed(built / "libpolicy.so") <= ALLOWED
    command(built / "policy", "selftest", folder / "native/golden.bin")


def test_gcc_builds_it_without_warnings(build, folder):
    built = build()
    command(built / "policy", "selftest", folder / "native/golden.bin")
    sections = command("readelf", "--section-headers", "--wide", built / "libmodel.a")
    assert "model_initialisers" in sections
    assert not re.search(r"\.init_array\b", sections)  # whatever its priority


def driver(source: Path, built: Path, binary: Path, sanitizer: str) -> Path:
    """Return a program of the tests that calls the library."""
    include = ROOT / "native/include"
    flags = [f"-fsanitize={sanitizer}", "-g", "-O1", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-DSTANDALONE"]
    flags += [f"-I{include}", f"-I{ROOT / 'native/src'}"]
    command("g++", *flags, source, f"-L{built}", "-lpolicy", f"-Wl,-rpath,{built}", "-pthread", "-o", binary)
    return binary


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(build, folder, tmp_path, sanitizer):
    """Run them on handles of many threads, and on the calls and files that a fuzzer makes."""
    built = build(f"-DPOLICY_SANITIZE={sanitizer}")
    golden_file = folder / "native/golden.bin"
    # ThreadSanitizer wants its memory where some kernels put libraries.
    steady = ["setarch", "--addr-no-randomize"] if sanitizer == "thread" else []
    stress = driver(ROOT / "tests/native/stress.cpp", built, tmp_path / "stress", sanitizer)
    command(*steady, stress, golden_file)
    command(*steady, built / "policy", "selftest", golden_file)
    command(*steady, built / "policy", "play", golden_file)
    if not steady:
        fuzz = driver(ROOT / "tests/native/fuzz.cpp", built, tmp_path / "fuzz", sanitizer)
        fuzz_calls(fuzz, golden_file)
        fuzz_files(built / "policy", golden_file, tmp_path / "file")


def fuzz_calls(binary: Path, golden_file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLICY_GOLDEN", str(golden_file))
        command(binary, "150")


def has_fuzzer() -> bool:
    """Return whether there is a clang with libFuzzer, which Debian has in another package."""
    if shutil.which("clang++") is None:
        return False
    libraries = Path(command("clang++", "-print-resource-dir").strip(), "lib")
    return bool(list(libraries.glob("*/libclang_rt.fuzzer*")))


@pytest.mark.skipif(not has_fuzzer(), reason="clang's libFuzzer is not installed")
def test_guided_fuzzer_finds_nothing(generated, folder, tmp_path, monkeypatch):
    """Let libFuzzer choose calls and golden files by what they reach; FUZZ_SECONDS is for how long."""
    built = tmp_path / "build"
    options = ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    options += [
        "-DPOLICY_SANITIZE=fuzzer-no-link,address,undefined",
        f"-DPOLICY_FUZZER={ROOT / 'tests/native/fuzz.cpp'}",
    ]
    build_library(generated, find_target("native"), built, *options)
    monkeypatch.setenv("POLICY_GOLDEN", str(folder / "native/golden.bin"))
    seconds = os.environ.get("FUZZ_SECONDS", "20")
    (tmp_path / "corpus").mkdir()
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=512"]
    done = subprocess.run(
        [built / "fuzzer", *limits, f"-artifact_prefix={tmp_path}/", tmp_path / "corpus"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs, covered = re.findall(r"#(\d+)\s+DONE\s+cov: (\d+)", done.stderr)[-1]
    print(f"{runs} inputs, {covered} places reached")
    assert any((tmp_path / "corpus").iterdir())  # it was guided: some inputs reached more than those before


def fuzz_files(binary: Path, golden_file: Path, path: Path) -> None:
    """Run the command on cut, changed or random golden files; it must end with a line that says what is wrong."""
    few = golden_file.read_bytes()[: 112 + 3 * (1 + 100800 + 32) + 5]
    random = np.random.default_rng(0)
    for number in range(100):
        content = bytearray(few[: random.integers(len(few) + 1)] if number % 3 else random.bytes(300))
        for at in random.integers(max(1, min(len(content), 120)), size=random.integers(4)):
            content[at : at + random.integers(2)] = random.bytes(random.integers(9))
        path.write_bytes(content)
        for word in ("selftest", "play"):
            done = subprocess.run([binary, word, path], capture_output=True, text=True, check=False)
            lines = done.stderr.splitlines()
            assert (done.returncode, len(lines)) in ((0, 0), (1, 1)), done.stderr[-2000:]
            assert not lines or lines[0].startswith("error: ")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="is about the levels of x86-64")
def test_processor_without_the_instructions_is_refused(folder):
    """Check this in an emulator of an older processor: the library is loaded, and says why it does not run."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        pytest.skip("qemu-user is not installed")
    message = command(emulator, "-cpu", "Nehalem", folder / "native/policy", "selftest", status=1)
    assert "this processor lacks instructions that the library was built for: x86-64-v" in message
    assert command(emulator, "-cpu", "Nehalem", folder / "native/policy", "info").startswith("policy dqn\n")
    played = command(emulator, "-cpu", "Haswell", sys.executable, folder / "player", "--native", "--selftest")
    name = "native/x86-64-v3/libpolicy.so" if find_target("native").level == 4 else NATIVE
    assert f"selftest dqn, {name}: " in played


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="g++-aarch64-linux-gnu and qemu-user are not installed",
)
def test_aarch64_decides_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    with processes(1) as executor:
        executor.submit(compile_target, "dqn", "aarch64", tmp_path).result()
    assert needed(tmp_path / "libpolicy.so") <= ALLOWED
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    golden_file = folder / "native/golden.bin"
    assert "all as they were" in command(*emulator, tmp_path / "policy", "selftest", golden_file)
    assert "instructions aarch64" in command(*emulator, tmp_path / "policy", "info")
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    library, its_command = (model / "native/aarch64" / name for name in ("libpolicy.so", "policy"))
    library.parent.mkdir()
    for path in (library, its_command):
        shutil.copy(tmp_path / path.name, path)
    manifest = read_manifest(folder)
    listed = manifest | {"files": {**manifest["files"], "native/aarch64/libpolicy.so": {}}}
    facts = load_program(folder / "policy.pt2", "dqn")[1]
    assert list(check_libraries(model, listed, facts)) == []
    library.write_bytes(library.read_bytes().replace(b'"frame_skip": 4', b'"frame_skip": 5'))
    with_other_weights(its_command, folder)
    of_library, of_command = check_libraries(model, listed, facts)
    assert of_library == f"{library}: does not hold the facts that the profile and the trained policy say"
    assert of_command.startswith(f"{its_command}: does not decide as {model / 'native/golden.bin'} has it: ")


def with_other_weights(path: Path, folder: Path) -> None:
    """Change a bias in a library or command."""
    content, weights = path.read_bytes(), load_file(folder / "policy.safetensors")
    found = [bias for bias in weights.values() if bias.ndim == 1 and len(bias) > 4 and bias.tobytes() in content]
    path.unlink()
    path.write_bytes(content.replace(found[0].tobytes(), np.arange(len(found[0]), dtype=np.float32).tobytes()))
    path.chmod(0o755)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or find_target("native").level != 4,
    reason="no library of the folder is for another instruction set that this processor has",
)
def test_library_for_another_instruction_set_is_exercised(folder, tmp_path):
    manifest, facts = read_manifest(folder), load_program(folder / "policy.pt2", "dqn")[1]
    assert list(check_libraries(folder, manifest, facts)) == []
    (line,) = check_libraries(folder, manifest, facts | {"policy": "another"})
    assert line.endswith("native/x86-64-v3/libpolicy.so: policy is not what the profile and the trained policy say")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # a process loads a library of one path once
    path = tmp_path / "native/x86-64-v3/libpolicy.so"
    with_other_weights(path, folder)
    (line,) = check_libraries(tmp_path, manifest, facts)
    assert line.startswith(f"{path}: ")
    assert "golden" in line


def test_targets_are_known_to_params():
    allowed = params.CompileNative.model_fields["targets"].annotation
    assert all(f"'{name}'" in str(allowed) for name in ("native", *TARGETS))
