"""Every file of every kind of artifact damaged: it is noticed before anything of it is used."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from campaign import Trials
from conftest import Launcher
from small import DEVICE
from undisturbed import COMMAND, STAGES, Undisturbed, artifacts, files_of, identity_of, store_of, temporary, told

from irl_exp.analysis import study
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.store import ArtifactError, Store
from irl_exp.policies.language_models import Completions, Policy, PolicyError
from irl_exp.rewards.ground_truth import load_ground_truth
from irl_exp.rewards.reward import RewardError

pytestmark = pytest.mark.faults

SUBJECT = "Damage"
HELD = """
a damaged artifact is not used: the store says its name once, computes it again, and then has its bytes as before. A
reward or policy that is opened by its folder is refused with one message of ours, or gives the very scores of the whole
one (where the damage is in a file that opening does not read). A launch over a damaged store ends with 0 and the bytes
of an undisturbed one. A run with a damaged file is left out of the statistics by name, or they are unchanged; never a
traceback. (The files of a run folder have no checksums: that a digit was altered in one is not noticed.)
"""

OURS = (RewardError, PolicyError, ArtifactError)
SEED = 11


def truncate(path: Path, other: Path, generator: random.Random) -> None:
    """Cut somewhere, at least one byte."""
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def flip(path: Path, other: Path, generator: random.Random) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def remove(path: Path, other: Path, generator: random.Random) -> None:
    path.unlink()


def swap(path: Path, other: Path, generator: random.Random) -> None:
    """With another file, of the same name in another artifact where there is one."""
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "truncated": truncate,
    "one bit flipped": flip,
    "removed": remove,
    "swapped": swap,
}


@pytest.fixture(scope="module")
def kinds(launcher: Launcher, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with many kinds of artifacts, two of most: the whole chain, and other methods, rewards and data."""
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copytree(store_of(undisturbed.done.cwd), store_of(folder))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "The weather of day {day} was"}}\n' for day in range(12)))
    second = ("benchmark=file", f"benchmark.path={prompts}", "benchmark.prompts=8")
    launcher(folder, *COMMAND, "irl=margin,ensemble,bayesian,implicit", "irl.seed=1", "until=irl", *second)
    launcher(folder, *COMMAND, "reward=length,sentiment", "until=sft")
    launcher(folder, *COMMAND, *second)
    return store_of(folder)


@contextmanager
def restored(store: Path, whole: Path) -> Iterator[None]:
    """Put back what the block has changed, file by file."""
    try:
        yield
    finally:
        for path in whole.rglob("*"):
            mine = store / path.relative_to(whole)
            if path.is_file() and (not mine.is_file() or mine.stat().st_mtime_ns != path.stat().st_mtime_ns):
                mine.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, mine)


def partner(path: Path, folders: list[Path]) -> Path:
    """Another file to swap with: of the same place in another artifact of the stage, else of the same artifact."""
    folder = next(folder for folder in folders if path.is_relative_to(folder))
    name = path.relative_to(folder)
    same = [other / name for other in folders if other.parent == folder.parent and other != folder]
    beside = [other for other in sorted(folder.rglob("*")) if other.is_file() and other != path]
    found = [other for other in (*same, *beside) if other.is_file() and other.read_bytes() != path.read_bytes()]
    return found[0]


@pytest.mark.parametrize("how", DAMAGES)
def test_every_file_of_every_kind_of_artifact(
    trials: Trials, kinds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    whole, store = kinds, shutil.copytree(kinds, tmp_path / "store")
    wanted, folders, generator = files_of(whole), artifacts(store), random.Random(SEED)
    caplog.set_level(logging.WARNING, logger="irl_exp.machinery.store")
    for path in [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]:
        name = path.relative_to(store).as_posix()
        with trials(f"{how}: every file of every kind of artifact", name), restored(store, whole):
            folder = store / Path(*path.relative_to(store).parts[:2])
            identity = identity_of(whole / folder.relative_to(store))
            caplog.clear()
            DAMAGES[how](path, partner(path, folders), generator)
            computed = Store(store).get(
                identity, lambda new, folder=folder: copy(whole / folder.relative_to(store), new)
            )
            assert not computed.reused, "it was used"
            assert [record for record in caplog.messages if identity.digest in record], "it was not named"
            mine = {
                file: digest
                for file, digest in files_of(store).items()
                if file.startswith(f"{identity.stage}/{identity.digest}/")
            }
            assert mine == {file: wanted[file] for file in mine}
            assert temporary(store) == []


def copy(source: Path, target: Path) -> dict[str, str]:
    """In the place of a computation."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
    return {}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_launch_over_a_store_that_is_damaged_everywhere(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path, how: str
) -> None:
    store = shutil.copytree(store_of(undisturbed.done.cwd), store_of(tmp_path))
    generator, folders = random.Random(SEED), artifacts(store)
    for folder in folders:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "history.jsonl"]
        chosen = generator.choice(files)
        DAMAGES[how](chosen, partner(chosen, [folder]), generator)
    with trials(f"{how}: a file of each artifact at once, then a launch"):
        done = launcher(tmp_path, *COMMAND, check=False)
        undisturbed.check(done)
        assert done.states() == dict.fromkeys(STAGES, "computed")
        assert [folder.name for folder in folders if folder.name not in done.stderr] == [], "not all are named"


# --------------------------------------------------------------------------------------- opened by its folder


TEXTS = Completions(["The bus", "I think"], [" is late.", " so too"], [[5, 6], [7, 8]], [[9, 10], [11, 12]])


def learned(folder: Path) -> bytes:
    return np.asarray(LearnedReward.load(folder, DEVICE).score(TEXTS)).tobytes()


def truth(folder: Path) -> bytes:
    return np.asarray(load_ground_truth(folder, DEVICE).score(TEXTS)).tobytes()


def policy(folder: Path) -> bytes:
    found = Policy.load(folder, DEVICE)
    return (
        b"".join(value.numpy().tobytes() for value in found.model.state_dict().values())
        + repr(found.encode_prompts(TEXTS.prompts)).encode()
    )


OPENED: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "irl": ("a learned reward", learned),
    "reward": ("a ground truth", truth),
    "sft": ("a policy", policy),
}


@pytest.mark.parametrize("stage", OPENED)
@pytest.mark.parametrize("how", DAMAGES)
def test_opened_by_its_folder(trials: Trials, kinds: Path, tmp_path: Path, stage: str, how: str) -> None:
    what, opened = OPENED[stage]
    generator = random.Random(SEED)
    for folder in [folder for folder in artifacts(kinds) if folder.parent.name == stage]:
        store = shutil.copytree(kinds, tmp_path / folder.name)
        mine = store / stage / folder.name
        wanted = opened(mine)
        for path in [path for path in sorted(mine.rglob("*")) if path.is_file()]:
            row = f"{how}: every file of {what} that a user opens by its folder"
            with trials(row, path.relative_to(store).as_posix()), restored(store, kinds):
                DAMAGES[how](path, partner(path, [mine]), generator)
                refused = ""
                try:
                    assert opened(mine) == wanted, "it was used"
                except OURS as error:
                    refused = str(error)
                assert len(refused.splitlines()) < 2, f"not one line: {refused}"
        shutil.rmtree(store)


# ------------------------------------------------------------------------------------------ the files of runs


@pytest.fixture(scope="module")
def launch(launcher: Launcher, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(store_of(undisturbed.done.cwd), store_of(folder))
    return launcher(folder, *COMMAND, "irl.seed=0,1").folder


def nonsense(path: Path, other: Path, generator: random.Random) -> None:
    """Other bytes, as many."""
    path.write_bytes(generator.randbytes(path.stat().st_size))


@pytest.mark.parametrize("how", ["truncated", "removed", "swapped", "nonsense"])
def test_every_file_of_a_run(trials: Trials, launch: Path, tmp_path: Path, how: str) -> None:
    damage = {**DAMAGES, "nonsense": nonsense}[how]
    mine = shutil.copytree(launch, tmp_path / "multirun" / "chain" / launch.name)
    generator, wanted = random.Random(SEED), said(mine)
    for path in [path for path in sorted(mine.rglob("*")) if path.is_file() and path.stat().st_size]:
        name = path.relative_to(mine).as_posix()
        with trials(f"{how}: every file of a launch of two runs, then its statistics", name), restored(mine, launch):
            beside = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
            damage(path, beside[0], generator)
            refused = ""
            try:
                found = said(mine)
                assert found["numbers"] == wanted["numbers"] or found["told"] != wanted["told"], "nothing was said"
            except study.StudyError as error:
                refused = str(error)
            assert len(refused.splitlines()) < 2, f"not one line: {refused}"


def said(folder: Path) -> dict[str, str]:
    """The numbers of a study, and what it says of itself."""
    found = study.read(folder)
    numbers = [found.metrics.to_json(), *(curve.to_json() for _, curve in sorted(found.curves.items()))]
    numbers += ["" if found.rewards is None else found.rewards.to_json()]
    return {"numbers": "\n".join(numbers), "told": repr((found.lost, found.notes, found.unreadable))}


def test_a_store_of_an_older_program(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Manifests of a format that is not known are not guessed at."""
    store = shutil.copytree(store_of(undisturbed.done.cwd), store_of(tmp_path))
    for folder in artifacts(store):
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))
    with trials("manifests of another format in all artifacts, then a launch"):
        done = launcher(tmp_path, *COMMAND, check=False)
        assert done.returncode == 0, told(done)
        undisturbed.check(done)
