"""The store under what can go wrong: kills, interrupts, damage, full disks, and processes in a race."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from irl_exp.machinery import heartbeat
from irl_exp.machinery import store as room
from irl_exp.machinery.store import (
    Artifact,
    ArtifactError,
    Identity,
    Store,
    UnreadableError,
    fingerprint,
    read_manifest,
)

SPAWN = multiprocessing.get_context("spawn")
IDENTITY = Identity("irl", 3, {"seed": 0, "loss": {"name": "logistic", "beta": 0.5}}, {"demonstrations": "d1"})
OTHER = Identity("irl", 3, {"seed": 1}, {})
SEEDS = [Identity("irl", 3, {"seed": seed}, {}) for seed in range(4)]


def write(folder: Path) -> dict[str, Any]:
    """The computation of most tests."""
    (folder / "weights.bin").write_bytes(b"w" * 5000)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocabulary.txt").write_text("a b c")
    (folder / ".hidden").write_text("part of the artifact, too")
    return {"loss": 0.25, "trl": "1.16"}


def never(folder: Path) -> None:
    raise AssertionError("computed although the artifact is in the store")


def content(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.folder / name).read_bytes() for name in artifact.manifest["files"]}


def remains(store: Store) -> set[str]:
    """Everything in the folder of the stage except for lock files."""
    return {path.name for path in (store.root / "irl").iterdir() if path.suffix != ".lock"}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# ---------------------------------------------------------------------------------------------- identity

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TRICKY: st.SearchStrategy[Any] = st.sampled_from(
    [None, "null", True, False, 0, 0.0, -0.0, 1, 1.0, 1e22, 10**22, "1", "", 0.5, "0.5", (), {}]
)


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    children = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(keys, children, max_size=3)


CONFIGS = trees(LEAVES, st.text(max_size=3))
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # for a busy machine
SMALL_CONFIGS = trees(TRICKY, st.sampled_from(["a", "b"]))


def digest(config: dict[str, Any]) -> str:
    return Identity("irl", 1, config, {}).digest


def same(one: Any, other: Any) -> bool:
    """The oracle: equality of Python, with True apart from 1 and lists the same as tuples."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return tuple(map(reordered, value)) if isinstance(value, list) else value


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every leaf below a container."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, (dict, list)):
            yield from leaves(item)
        else:
            yield value, key


@RELAXED
@given(CONFIGS)
def test_digest_ignores_the_order_of_keys_and_the_kind_of_sequence(config: dict[str, Any]) -> None:
    assert digest(config) == digest(reordered(config))


@RELAXED
@given(CONFIGS, LEAVES, st.data())
def test_digest_follows_every_leaf(config: dict[str, Any], new: Any, data: st.DataObject) -> None:
    config = {"leaf": 1.5, **config}
    before = digest(config)
    container, key = data.draw(st.sampled_from(list(leaves(config))))
    unchanged = same(container[key], new)
    container[key] = new
    assert (digest(config) == before) == unchanged


@RELAXED
@given(SMALL_CONFIGS, SMALL_CONFIGS)
@example({"a": 1}, {"a": 1.0})
@example({"a": 0}, {"a": -0.0})
@example({"a": 1e22}, {"a": 10**22})
@example({"a": 1}, {"a": True})
@example({"a": 0.0}, {"a": False})
@example({"a": 0.5}, {"a": "0.5"})
@example({"a": None}, {"a": "null"})
@example({"a": None}, {})
@example({"a": [1, [2]]}, {"a": [[1], 2]})
@example({"a": {"b": 1}}, {"a.b": 1})
@example({"a": 2**53}, {"a": 2**53 + 1})
def test_digests_are_equal_exactly_where_configs_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (digest(one) == digest(other)) == same(one, other)


def test_digest_is_the_same_in_every_version_of_this_code() -> None:
    assert IDENTITY.digest == "44e4b460d8ac78466eb7"


def test_digest_depends_on_stage_version_and_inputs() -> None:
    identities = [
        Identity("irl", 1, {}, {}),
        Identity("rlhf", 1, {}, {}),
        Identity("irl", 2, {}, {}),
        Identity("irl", 1, {}, {"model": "m1"}),
        Identity("irl", 1, {}, {"model": "m2"}),
        Identity("irl", 1, {"model": "m1"}, {}),
    ]
    assert len({identity.digest for identity in identities}) == len(identities)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"config\.irl\.steps\[1\]=nan is not a finite number"),
        (float("-inf"), r"config\.irl\.steps\[1\]=-inf is not a finite number"),
        (Path("x"), r"config\.irl\.steps\[1\]=.* is a PosixPath"),
        ({1}, r"config\.irl\.steps\[1\]=\{1\} is a set"),
        ({2: "two"}, r"config\.irl\.steps\[1\] has the key 2, a int"),
    ],
)
def test_identity_refuses_what_json_cannot_say(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _ = Identity("irl", 1, {"irl": {"steps": [1, value]}}, {}).digest


@pytest.mark.parametrize("stage", ["", ".", "..", ".irl", "irl/loss", "/irl", "irl/"])
def test_identity_refuses_a_stage_that_is_no_folder_name(stage: str) -> None:
    with pytest.raises(ValueError, match="stage="):
        Identity(stage, 1, {}, {})


# ------------------------------------------------------------------------------------------- fingerprints


def test_fingerprint_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(tmp_path / "data.jsonl") == expected


def test_fingerprint_of_a_folder_follows_names_and_contents_only(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        for file, text in files.items():
            path = tmp_path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return fingerprint(tmp_path / name)

    model = folder("a", config="{}", sub__weights="w")
    assert folder("b", sub__weights="w", config="{}") == model
    (tmp_path / "b" / ".git").mkdir()
    (tmp_path / "b" / ".git" / "HEAD").write_text("hidden")
    (tmp_path / "b" / ".hidden").write_text("hidden")
    assert fingerprint(tmp_path / "b") == model
    changed = [
        folder("c", config="{}", sub__weights="v"),
        folder("d", config="{}", sub__weight="w"),
        folder("e", config="{}", weights="w"),
        folder("f", config="{}", sub__weights="w", extra=""),
        folder("g", config="w", sub__weights="{}"),
    ]
    assert len({model, *changed}) == 6


def test_fingerprint_follows_linked_files_but_refuses_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("w")
    for name in ("plain", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain" / "weights").write_text("w")
    (tmp_path / "linked" / "weights").symlink_to(tmp_path / "blob")
    assert fingerprint(tmp_path / "linked") == fingerprint(tmp_path / "plain")
    (tmp_path / "linked" / "sub").symlink_to(tmp_path / "plain")
    with pytest.raises(ArtifactError, match="linked/sub is neither"):
        fingerprint(tmp_path / "linked")


def test_fingerprint_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent cannot be read .*: give the path"):
        fingerprint(tmp_path / "absent")


# ------------------------------------------------------------------------------------------ compute, reuse


def test_an_artifact_is_computed_once_and_then_reused(store: Store) -> None:
    assert IDENTITY not in store
    assert store.find(IDENTITY) is None

    def slow(folder: Path) -> dict[str, Any]:
        time.sleep(0.05)
        return write(folder)

    made = store.get(IDENTITY, slow)
    again = store.get(IDENTITY, never)
    assert IDENTITY in store
    assert OTHER not in store
    assert (made.reused, again.reused) == (False, True)
    assert made.folder == again.folder == store.root / "irl" / IDENTITY.digest
    assert made.digest == again.digest == IDENTITY.digest
    assert 0.05 <= made.seconds == again.seconds < 5
    assert made.manifest == again.manifest == read_manifest(made.folder)
    assert content(again) == {
        ".hidden": b"part of the artifact, too",
        "tokenizer/vocabulary.txt": b"a b c",
        "weights.bin": b"w" * 5000,
    }
    assert again.manifest["info"] == {"loss": 0.25, "trl": "1.16"}
    assert again.manifest["identity"]["config"] == IDENTITY.config
    assert again.manifest["files"]["weights.bin"]["sha256"] == fingerprint(again.folder / "weights.bin")
    assert remains(store) == {IDENTITY.digest}


def test_manifests_are_identical_apart_from_times(tmp_path: Path) -> None:
    def backwards(folder: Path) -> dict[str, Any]:
        (folder / "tokenizer").mkdir()
        info = write_into_existing(folder)
        return dict(reversed(info.items()))

    def write_into_existing(folder: Path) -> dict[str, Any]:
        (folder / "tokenizer" / "vocabulary.txt").write_text("a b c")
        (folder / ".hidden").write_text("part of the artifact, too")
        (folder / "weights.bin").write_bytes(b"w" * 5000)
        return {"loss": 0.25, "trl": "1.16"}

    twin = Identity("irl", 3, reordered(IDENTITY.config), IDENTITY.inputs)
    folders = [
        Store(tmp_path / "1").get(IDENTITY, write).folder,
        Store(tmp_path / "2").get(twin, backwards).folder,
    ]
    texts = [(folder / "manifest.json").read_text() for folder in folders]
    times = r'^  "(created|seconds|sha256)": [^,\n]*'  # its own checksum follows them
    one, other = (re.sub(times, "", text, flags=re.MULTILINE) for text in texts)
    assert one == other
    assert len(one) < len(texts[0])
    assert json.loads(texts[0])["provenance"].keys() == {"python", "platform"}


def test_an_artifact_may_consist_of_its_manifest(store: Store) -> None:
    assert store.get(OTHER, lambda folder: None).manifest["info"] == {}
    assert store.get(OTHER, never).manifest["files"] == {}


def test_the_root_may_be_relative_and_the_process_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))
    monkeypatch.chdir("/")
    assert store.get(IDENTITY, write).folder.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{}") and None, ArtifactError, "manifest"),
        (lambda folder: (folder / "data").symlink_to(__file__), ArtifactError, "data is a link"),
        (lambda folder: (folder / "data").symlink_to("/usr"), ArtifactError, "data is neither a file nor"),
        (lambda folder: {"metrics": {"kendall": float("nan")}}, TypeError, r"info\.metrics\.kendall=nan"),
        (lambda folder: {"path": folder}, TypeError, r"info\.path=.* is a PosixPath"),
    ],
)
def test_results_that_cannot_be_kept_are_refused(
    store: Store, compute: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store.get(IDENTITY, compute)
    assert remains(store) == set()


# ------------------------------------------------------------------------------- failures and interruptions


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_what_fails_leaves_nothing_and_is_computed_again(store: Store, error: type[BaseException]) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        write(folder)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        store.get(IDENTITY, fail)
    assert remains(store) == set()
    assert IDENTITY not in store
    assert not store.get(IDENTITY, write).reused


def test_an_interrupt_just_before_the_rename_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.get(IDENTITY, write)
    assert remains(store) == set()
    monkeypatch.undo()
    assert not store.get(IDENTITY, write).reused


def _compete(root: Path, log: Path) -> None:
    """One of four processes; the one that computes goes on until the three others say that they wait."""

    def compute(folder: Path) -> dict[str, Any]:
        (log / f"built-{os.getpid()}").touch()
        wait_for(lambda: len(list(log.glob("waited-*"))) == 3)
        return write(folder)

    def on_wait(identity: Identity) -> None:
        with (log / f"waited-{os.getpid()}").open("x") as file:  # a second call would fail
            file.write(identity.digest)

    artifact = Store(root).get(IDENTITY, compute, on_wait=on_wait)
    (log / f"{'reused' if artifact.reused else 'made'}-{os.getpid()}").write_text(repr(content(artifact)))


def test_four_processes_compute_once_and_three_say_that_they_wait(store: Store, tmp_path: Path) -> None:
    processes = [SPAWN.Process(target=_compete, args=(store.root, tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 4
    for kind, count in {"built": 1, "waited": 3, "made": 1, "reused": 3}.items():
        assert len(list(tmp_path.glob(f"{kind}-*"))) == count, kind
    assert {path.read_text() for path in tmp_path.glob("waited-*")} == {IDENTITY.digest}
    assert len({path.read_text() for path in [*tmp_path.glob("made-*"), *tmp_path.glob("reused-*")]}) == 1
    assert remains(store) == {IDENTITY.digest}


def _build_for_ever(root: Path, marker: Path) -> None:
    def compute(folder: Path) -> None:
        (folder / "half").write_text("of the work")
        marker.touch()
        time.sleep(60)

    Store(root).get(IDENTITY, compute)


def test_who_waits_takes_over_when_the_builder_is_killed(store: Store, tmp_path: Path) -> None:
    builder = SPAWN.Process(target=_build_for_ever, args=(store.root, tmp_path / "marker"))
    builder.start()
    wait_for((tmp_path / "marker").exists)
    waited: list[Identity] = []

    def on_wait(identity: Identity) -> None:
        waited.append(identity)
        assert any(name.startswith(f".{IDENTITY.digest}.tmp-") for name in remains(store))
        builder.kill()

    artifact = store.get(IDENTITY, write, on_wait=on_wait)
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    assert waited == [IDENTITY]
    assert not artifact.reused
    assert "half" not in content(artifact)
    assert remains(store) == {IDENTITY.digest}


def _get_and_die(store: Store, line: int) -> None:
    """Call `get`, and kill this process when it comes to the `line`-th line of the code of the store."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in (room.__file__, heartbeat.__file__):
            return None
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    store.get(IDENTITY, write)
    os._exit(0)


def _die_everywhere(root: Path, log: Path) -> None:
    room._fsync = lambda path: None  # a kill does not lose what the kernel has
    outcomes = []
    for line in range(1, 2000):
        store = Store(root)
        if (builder := os.fork()) == 0:
            _get_and_die(store, line)
        if os.waitstatus_to_exitcode(os.waitpid(builder, 0)[1]) == 0:
            break
        whole = IDENTITY in store
        assert store.folder(IDENTITY).exists() == whole
        artifact = store.get(IDENTITY, write)
        assert artifact.reused == whole
        assert len(content(artifact)) == 3
        if not whole:  # then this call was a builder, and must have cleaned up
            assert remains(store) == {IDENTITY.digest}
        outcomes.append(whole)
        shutil.rmtree(root)
    log.write_text(json.dumps(outcomes))


def test_a_kill_at_any_line_loses_at_most_the_stage_in_flight(store: Store, tmp_path: Path) -> None:
    """Forks inside of a spawned process, where no other thread is."""
    process = SPAWN.Process(target=_die_everywhere, args=(store.root, tmp_path / "outcomes"))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    outcomes = json.loads((tmp_path / "outcomes").read_text())
    assert outcomes == sorted(outcomes)  # absent before the rename, whole after it
    assert outcomes.count(False) > 100
    assert outcomes.count(True) > 3


# ------------------------------------------------------------------------------------------------- damage


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        manifest = read_manifest(folder)
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (lambda f: os.truncate(f / "weights.bin", 4999), "weights.bin", "4999 bytes, not 5000"),
    "altered": (lambda f: (f / "weights.bin").write_bytes(b"v" * 5000), "weights.bin", "another sha256"),
    "deleted": (
        lambda f: (f / "tokenizer/vocabulary.txt").unlink(),
        "tokenizer/vocabulary.txt",
        "No such file",
    ),
    "folder lost": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer/vocabulary.txt", "No such file"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json", "No such file"),
    "empty manifest": (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json", "is not JSON"),
    "half a manifest": (lambda f: os.truncate(f / "manifest.json", 300), "manifest.json", "is not JSON"),
    "binary": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json", "is not JSON"),
    "too deep": (lambda f: (f / "manifest.json").write_text("[" * 10**5), "manifest.json", "is not JSON"),
    "a list": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "manifest.json",
        "malformed at format_version",
    ),
    "field lost": (edit(lambda m: m.pop("seconds")), "manifest.json", "malformed at seconds"),
    "entry": (edit(lambda m: m["files"].update(x=3)), "manifest.json", "malformed at files.x"),
    "format": (edit(lambda m: m.update(format_version=99)), "manifest.json", "format_version=99, not 1"),
    "digest": (edit(lambda m: m.update(digest="0" * 20)), "manifest.json", "states another identity"),
    "unknown field": (edit(lambda m: m.update(sha257="")), "manifest.json", "malformed at sha257"),
    "number": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("0.25", "0.35")),
        "manifest.json",
        "was altered",
    ),
    "config": (edit(lambda m: m["identity"]["config"].update(seed=1)), "manifest.json", "another identity"),
    "not a folder": (file_instead, "manifest.json", "Not a directory"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_repaired(store: Store, caplog: pytest.LogCaptureFixture, name: str) -> None:
    damage, file, problem = DAMAGES[name]
    caplog.set_level(logging.WARNING, logger=room.__name__)
    whole = content(store.get(IDENTITY, write))
    damage(store.folder(IDENTITY))
    assert (IDENTITY in store) == (name == "altered")  # which the cheap look cannot see

    assert store.find(IDENTITY) is None
    artifact = store.get(IDENTITY, write)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2  # one of find, one of get
    for warning in warnings:
        assert f"{store.folder(IDENTITY) / file} " in warning
        assert problem in warning
        assert "delete its folder" in warning

    assert not artifact.reused
    assert content(artifact) == whole
    assert content(store.get(IDENTITY, never)) == whole
    assert remains(store) == {IDENTITY.digest}


def count_digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to the end, from now on."""
    digests, original = [], hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        digests.append(file.name)
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return digests


def test_what_changed_just_now_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stamps may be too coarse to tell a change within some milliseconds from none."""
    digests = count_digests(monkeypatch)
    monkeypatch.setattr(room, "_SETTLED", 10**12)
    store.get(IDENTITY, write)
    for reads in (6, 9, 12):
        assert store.find(IDENTITY)
        assert len(digests) == reads


def test_files_are_read_once_per_process_until_they_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = count_digests(monkeypatch)
    monkeypatch.setattr(room, "_SETTLED", -(10**12))
    folder = store.get(IDENTITY, write).folder
    assert len(digests) == 3
    for _ in range(3):
        assert Store(store.root).find(IDENTITY)
    assert len(digests) == 3
    time.sleep(0.05)  # several ticks of the clock of the file system
    (folder / "weights.bin").write_bytes(b"v" * 5000)
    assert store.find(IDENTITY) is None
    assert len(digests) == 4


def test_files_that_the_manifest_does_not_list_do_no_harm(store: Store) -> None:
    (store.get(IDENTITY, write).folder / "notes.txt").write_text("of the user")
    assert store.get(IDENTITY, never).reused


# ----------------------------------------------------------------------------------------- several users


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(
    ("mask", "folders", "files"), [(0o022, 0o755, 0o644), (0o002, 0o775, 0o664), (0o077, 0o700, 0o600)]
)
def test_the_umask_says_who_may_read_an_artifact(
    store: Store, umask: Callable[[int], int], mask: int, folders: int, files: int
) -> None:
    """Whatever a library thinks of it: safetensors writes for the owner alone."""

    def compute(folder: Path) -> dict[str, Any]:
        info = write(folder)
        (folder / "weights.bin").chmod(0o600)
        save_file({"w": np.zeros(3)}, folder / "tokenizer" / "embedding.safetensors")
        return info

    umask(mask)
    for artifact in (store.get(IDENTITY, compute), *store.make(SEEDS[:1], lambda made: map(compute, made.values()))):
        below = list(artifact.folder.rglob("*"))
        assert {path.name for path in below} >= {"weights.bin", "embedding.safetensors", "manifest.json"}
        for path in [artifact.folder, *below]:
            assert stat.S_IMODE(path.stat().st_mode) == (folders if path.is_dir() else files), path


@pytest.fixture
def public_store() -> Iterator[Store]:
    """A store that every user of this machine may enter: the folders of pytest are the owner's."""
    with tempfile.TemporaryDirectory(prefix="irl-exp-public-") as folder:
        os.chmod(folder, 0o755)
        yield Store(Path(folder) / "store")


LOOKS: dict[str, Callable[[Store], object]] = {
    "in": lambda store: IDENTITY in store,
    "find": lambda store: store.find(IDENTITY),
    "get": lambda store: store.get(IDENTITY, never),
    "make": lambda store: store.make([IDENTITY], lambda folders: map(never, folders.values())),
}


def _look_as_another_user(root: Path, log: Path) -> None:
    """In a process of its own: what each look says to somebody who may not open what root closed."""
    Store(root).make([], lambda folders: [])  # loads what this user may not load afterwards
    with log.open("w", encoding="utf-8") as told:
        if os.getuid() == 0:
            os.setuid(65534)
        for name, look in LOOKS.items():
            try:
                look(Store(root))
            except UnreadableError as error:
                told.write(f"{name}: {error}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="other rights")
@pytest.mark.parametrize("closed", [".", "manifest.json", "weights.bin"])
def test_what_is_closed_to_this_user_is_not_damaged(public_store: Store, tmp_path: Path, closed: str) -> None:
    """A second user of a shared store must not compute it again, nor put his own in its place."""
    artifact = public_store.get(IDENTITY, write)
    path = artifact.folder / closed
    mode, inode = stat.S_IMODE(path.stat().st_mode), artifact.folder.stat().st_ino
    path.chmod(0)
    process = SPAWN.Process(target=_look_as_another_user, args=(public_store.root, tmp_path / "told"))
    process.start()
    process.join(timeout=120)
    path.chmod(mode)
    assert process.exitcode == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert [line.partition(":")[0] for line in told] == list(LOOKS)
    for line in told:
        named = path / "manifest.json" if closed == "." else path
        for part in (f"{named} cannot be read (Permission denied)", "not replaced", "chmod -R a+rX", "store.dir="):
            assert part in line
    assert artifact.folder.stat().st_ino == inode
    assert public_store.get(IDENTITY, never).reused


# ------------------------------------------------------------------------------------ after a killed builder


def test_what_a_killed_builder_left_can_be_removed_at_once(store: Store) -> None:
    store.get(OTHER, write)
    for identity in (IDENTITY, OTHER):
        leftover = store.folder(identity).with_name(f".{identity.digest}.tmp-0123")
        leftover.mkdir()
        write(leftover)
    store.tidy([IDENTITY, OTHER, SEEDS[0]])
    assert remains(store) == {OTHER.digest}


def test_what_somebody_builds_now_is_left_alone(store: Store) -> None:
    def meanwhile(folder: Path) -> dict[str, Any]:
        Store(store.root).tidy([IDENTITY])
        return write(folder)

    assert len(content(store.get(IDENTITY, meanwhile))) == 3


# ------------------------------------------------------------------------------- full and forbidden places


def fill_the_disk(folder: Path) -> None:
    write(folder)
    with open("/dev/full", "wb") as file:
        file.write(b"x")


def raising(error: Exception) -> Callable[[Path], None]:
    def compute(folder: Path) -> None:
        write(folder)
        raise error

    return compute


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (raising(OSError(errno.ENOSPC, "No space left on device")), "No space left on device"),
        pytest.param(
            fill_the_disk,
            "No space left on device",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full"),
        ),
        (raising(OSError(errno.EDQUOT, "Disk quota exceeded")), "Disk quota exceeded"),
        (raising(OSError(errno.EROFS, "Read-only file system")), "Read-only file system"),
        (raising(RuntimeError("I/O error: No space left on device (os error 28)")), "os error 28"),
        (
            lambda folder: raising(PermissionError(errno.EACCES, "denied", str(folder / "x")))(folder),
            "denied",
        ),
    ],
)
def test_a_full_or_forbidden_disk_is_explained(store: Store, compute: Callable[[Path], None], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason) as caught:
        store.get(IDENTITY, compute)
    for part in (str(store.root), "MiB free", "store.dir=", "IRL_EXP_STORE"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert remains(store) == set()
    assert not store.get(IDENTITY, write).reused


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "prompts.jsonl"),
        PermissionError(errno.EACCES, "Permission denied", "/home/else/prompts.jsonl"),
        PermissionError(errno.EACCES, "Permission denied"),  # as of a socket
        OSError(errno.ENOSPC, "No space left on device", "/tmp/elsewhere"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    ],
)
def test_other_errors_of_the_system_are_not_blamed_on_the_store(store: Store, error: OSError) -> None:
    with pytest.raises(OSError, match=error.strerror) as caught:
        store.get(IDENTITY, raising(error))
    assert caught.value is error
    assert remains(store) == set()


def test_a_disk_that_is_full_at_the_manifest_is_explained(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        store.get(OTHER, lambda folder: None)
    assert remains(store) == set()


@pytest.mark.parametrize("use", [Store.prepare, lambda store: store.get(IDENTITY, never)])
@pytest.mark.parametrize("below", [".", "sub/store"])
def test_a_root_that_is_no_folder_is_explained(tmp_path: Path, use: Callable[[Store], Any], below: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtifactError, match=r"file.* cannot be written .*store\.dir=.*IRL_EXP_STORE"):
        use(Store(tmp_path / "file" / below))


@pytest.mark.parametrize("use", [Store.prepare, lambda store: store.get(IDENTITY, never)])
def test_a_read_only_root_is_explained(
    store: Store, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], Any]
) -> None:
    def read_only(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(ArtifactError, match=r"store cannot be written .*Read-only.*store\.dir="):
        use(store)


def test_prepare_creates_the_root_and_leaves_it_empty(store: Store) -> None:
    store.prepare(minimum_free_bytes=1)
    store.prepare(minimum_free_bytes=1)
    assert list(store.root.iterdir()) == []


def test_prepare_refuses_too_little_space(store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"has \d+ MiB free and needs 1099511627776 MiB: .*store\.dir=") as caught:
        store.prepare(minimum_free_bytes=2**60)
    assert str(store.root) in str(caught.value)


# ------------------------------------------------------------------------- several from one computation


def write_each(folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    for number, folder in enumerate(folders.values()):
        yield write(folder) | {"number": number}


def test_several_are_made_at_once_and_found_like_any_other(store: Store) -> None:
    made = store.make(SEEDS, write_each)
    assert [artifact.identity for artifact in made] == SEEDS
    assert [artifact.manifest["info"]["number"] for artifact in made] == [0, 1, 2, 3]
    for artifact in made:
        assert content(store.get(artifact.identity, never)) == content(artifact)
    assert remains(store) == {identity.digest for identity in SEEDS}


def test_only_what_is_missing_is_made(store: Store) -> None:
    store.get(SEEDS[1], write)
    assert [artifact.identity for artifact in store.make(SEEDS, write_each)] == [SEEDS[0], *SEEDS[2:]]
    assert store.make(SEEDS, lambda folders: pytest.fail("computed although all are in the store")) == []


def test_what_another_process_makes_is_left_to_it(store: Store) -> None:
    def meanwhile(folder: Path) -> dict[str, Any]:
        made = Store(store.root).make(SEEDS, write_each)
        assert [artifact.identity for artifact in made] == [SEEDS[0], *SEEDS[2:]]
        return write(folder)

    store.get(SEEDS[1], meanwhile)
    assert all(identity in store for identity in SEEDS)


def test_what_was_complete_before_an_error_stays(store: Store) -> None:
    def break_off(folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        for folder, info in zip(list(folders.values())[:2], write_each(folders), strict=False):
            assert folder.exists()
            yield info
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.make(SEEDS, break_off)
    assert [identity in store for identity in SEEDS] == [True, True, False, False]
    assert remains(store) == {identity.digest for identity in SEEDS[:2]}
    assert [artifact.identity for artifact in store.make(SEEDS, write_each)] == SEEDS[2:]


def test_the_time_until_the_first_is_shared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])

    def compute(folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        now[0] += 40
        for folder in folders.values():
            yield write(folder)
            now[0] += 1

    assert [artifact.seconds for artifact in store.make(SEEDS, compute)] == [10, 11, 11, 11]
