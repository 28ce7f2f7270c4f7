"""Folders and texts of somebody else: whatever they hold is data, and nothing of it runs."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import Trials
from conftest import ROOT, Launched, Launcher
from undisturbed import COMMAND, HINT, Undisturbed, artifacts, store_of

pytestmark = pytest.mark.faults

SUBJECT = "Untrusted folders and texts"
HELD = """
nothing of them is executed: each carries code that would create a file, and there is none; on a terminal (a pty with
"y" typed again and again) no question is asked; what cannot be opened as data is refused with one message of ours;
texts reach files as they are, quoted, the page as text and not as markup, and no control character reaches the
terminal.
"""


# ------------------------------------------------------------------------------------------ folders of models


class Code:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def module(marker: Path, *classes: str) -> str:
    """Python that creates a file when it is imported."""
    return f"open({str(marker)!r}, 'w').close()\n" + "".join(f"class {name}: pass\n" for name in classes)


def edit(path: Path, **values: object) -> None:
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(found | values), encoding="utf-8")


def pickled_weights(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code(marker)}))


def pickled_weights_in_a_zip(folder: Path, marker: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Code(marker)}, folder / "pytorch_model.bin")


def pickled_shards(folder: Path, marker: Path) -> None:
    pickled_weights(folder, marker)
    (folder / "pytorch_model.bin").rename(folder / "part.bin")
    index = {"metadata": {}, "weight_map": {"weight": "part.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def a_pickle_that_calls_itself_safetensors(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": Code(marker)}))


def an_index_that_points_outside(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    outside = folder.parent / "outside.bin"
    outside.write_bytes(pickle.dumps({"weight": Code(marker)}))
    index = {"metadata": {}, "weight_map": {"weight": "../outside.bin", "other": str(outside)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


AUTO = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoModelForSequenceClassification": "evil.EvilModel",
}


def auto_map(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(module(marker, "EvilConfig", "EvilModel"))
    edit(folder / "config.json", auto_map=AUTO)


def auto_map_of_an_unknown_kind(folder: Path, marker: Path) -> None:
    auto_map(folder, marker)
    edit(folder / "config.json", model_type="evil", architectures=["EvilModel"])


def auto_map_elsewhere(folder: Path, marker: Path) -> None:
    edit(folder / "config.json", auto_map={name: f"somebody/else--{place}" for name, place in AUTO.items()})


def auto_map_of_the_tokenizer(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(module(marker, "EvilTokenizer"))
    tokenizer = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    edit(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="EvilTokenizer")


def all_of_its_own(folder: Path, marker: Path) -> None:
    auto_map_of_the_tokenizer(folder, marker)
    auto_map_of_an_unknown_kind(folder, marker)


def a_way_to_generate(folder: Path, marker: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(module(marker) + "def generate(*args, **kwargs): pass\n")
    edit(folder / "generation_config.json", custom_generate=str(folder))


def an_adapter(folder: Path, marker: Path) -> None:
    other = shutil.copytree(folder, folder.parent / "other")
    pickled_weights(other, marker)
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(other), task_type="CAUSAL_LM")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Code(marker)}))


def a_chat_template(folder: Path, marker: Path) -> None:
    code = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch %s') }}"
    edit(folder / "tokenizer_config.json", chat_template=code % marker)


FOLDERS: tuple[Callable[[Path, Path], None], ...] = (
    *(pickled_weights, pickled_weights_in_a_zip, pickled_shards, a_pickle_that_calls_itself_safetensors),
    *(an_index_that_points_outside, auto_map, auto_map_of_an_unknown_kind, auto_map_elsewhere),
    *(auto_map_of_the_tokenizer, all_of_its_own, a_way_to_generate, an_adapter, a_chat_template),
)

OPEN = """
import json, sys
from pathlib import Path
from irl_exp.config import SequenceClassifierConfig
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.runtime import Device, prepare_process
from irl_exp.machinery.store import ArtifactError
from irl_exp.policies.language_models import Policy, PolicyError
from irl_exp.policies.sampling import generate
from irl_exp.rewards.ground_truth import SequenceClassifierReward, load_ground_truth
from irl_exp.rewards.reward import RewardError

device = Device("cpu", "fp32", 1)
prepare_process()

def policy(folder):
    generate(Policy.load(folder, device), ["The bus"], max_new_tokens=2, batch_size=1, seed=0)

def classifier(folder):
    SequenceClassifierReward.open(str(folder), SequenceClassifierConfig(seed=0, path=folder, hub=None), device)

opened = {"policy": policy, "classifier": classifier}
opened["truth"] = lambda folder: load_ground_truth(folder, device)
opened["learned"] = lambda folder: LearnedReward.load(folder, device)
found = []
for kind, folder in json.loads(Path(sys.argv[1]).read_text()):
    print("opening", folder)
    try:
        opened[kind](Path(folder))
        found.append(["opened", ""])
    except (PolicyError, RewardError, ArtifactError) as error:
        found.append(["refused", str(error)])
    except BaseException as error:
        found.append(["raised", f"{type(error).__name__}: {error}"])
    Path(sys.argv[2]).write_text(json.dumps(found))
"""


def at_a_terminal(command: list[str], folder: Path, seconds: float = 200) -> tuple[int, str]:
    """Exit code and output of a command on a pty, where somebody types "y" again and again."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    output: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # as Linux says that the other end is closed
            while chunk := os.read(ours, 4096):
                output.append(chunk)

    def answer() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while process.poll() is None:
                os.write(ours, b"y\n")
                ended.wait(0.5)

    ended = threading.Event()
    threads = [threading.Thread(target=act, daemon=True) for act in (read, answer)]
    for thread in threads:
        thread.start()
    try:
        code = process.wait(seconds)
    finally:
        process.kill()
        ended.set()
        for thread in threads:
            thread.join(2)
        os.close(ours)
    return code, b"".join(output).decode(errors="replace")


def all_opened(cases: list[tuple[str, Path]], folder: Path) -> tuple[list[list[str]], str]:
    """What became of each folder, opened in one process at a terminal, and all that was shown there."""
    (folder / "cases.json").write_text(json.dumps([(kind, str(path)) for kind, path in cases]))
    found = folder / "found.json"
    _, output = at_a_terminal([sys.executable, "-c", OPEN, str(folder / "cases.json"), str(found)], folder)
    return json.loads(found.read_text()), output


def check_opened(end: str, said: str, marker: Path) -> None:
    assert not marker.exists(), "it was executed"
    assert end != "raised", said.splitlines()[0]
    assert len(said.splitlines()) < 2, f"not one line: {said.splitlines()[:3]}"


ASKED = ("y/N", "trust_remote_code=True", "Do you wish to run")


@pytest.mark.parametrize("kind", ["policy", "classifier"])
def test_a_folder_of_a_model(
    trials: Trials, small_policy: Path, small_classifier: Path, tmp_path: Path, kind: str
) -> None:
    source = small_policy if kind == "policy" else small_classifier
    cases = []
    for make in FOLDERS:
        folder = shutil.copytree(source, tmp_path / make.__name__ / "model")
        make(folder, tmp_path / make.__name__ / "marker")
        cases.append((kind, folder))
    found, output = all_opened(cases, tmp_path)
    row = f"a folder of a {kind} with pickles, code of its own (auto_map), indexes that point outside, an adapter"
    for make, (end, said) in zip(FOLDERS, found, strict=True):
        with trials(row, make.__name__.replace("_", " ")):
            check_opened(end, said, tmp_path / make.__name__ / "marker")
    with trials(f"all of these folders of a {kind}: what the terminal showed"):
        assert [word for word in ASKED if word in output] == []


# -------------------------------------------------------------------------------------- folders of the store


def unknown_kind(folder: Path, marker: Path) -> None:
    edit(folder / "reward.json", kind="os.system")


def no_number(folder: Path, marker: Path) -> None:
    edit(folder / "reward.json", offset="touch", scale=None)


def a_reference_outside(folder: Path, marker: Path) -> None:
    other = folder.parents[2] / "evil"
    shutil.copytree(next(folder.parents[1].glob("sft/[!.]*")), other)
    auto_map_of_an_unknown_kind(other, marker)
    edit(folder / "reward.json", reference="../../evil")


def pickled_arrays(folder: Path, marker: Path) -> None:
    np.save(folder / "epochs.npy", np.array([Code(marker)], dtype=object), allow_pickle=True)
    (folder / "head.safetensors").write_bytes(pickle.dumps(Code(marker)))


def pickled_probes(folder: Path, marker: Path) -> None:
    (folder / "probes.parquet").write_bytes(pickle.dumps(Code(marker)))


LEARNED = (unknown_kind, no_number, a_reference_outside, pickled_arrays, pickled_probes)


def test_a_folder_of_a_learned_reward(trials: Trials, undisturbed: Undisturbed, tmp_path: Path) -> None:
    cases = []
    for make in LEARNED:
        store = shutil.copytree(store_of(undisturbed.done.cwd), tmp_path / make.__name__ / "store")
        folder = next(path for path in artifacts(store) if path.parent.name == "irl")
        make(folder, tmp_path / make.__name__ / "marker")
        cases.append(("learned", folder))
    found, output = all_opened(cases, tmp_path)
    for make, (end, said) in zip(LEARNED, found, strict=True):
        with trials("a folder of a learned reward: unknown kind, no numbers, `..`, pickles", make.__name__):
            check_opened(end, said, tmp_path / make.__name__ / "marker")
            assert end == "refused", "it was opened"
    with trials("all of these folders of a learned reward: what the terminal showed"):
        assert [word for word in ASKED if word in output] == []


# ---------------------------------------------------------------------------------------------------- launches


@pytest.mark.parametrize(
    ("option", "make", "more"),
    [
        ("model.path", all_of_its_own, ()),
        ("model.path", pickled_weights, ()),
        ("reward.path", auto_map_of_an_unknown_kind, ("reward=sequence_classifier",)),
        ("reward.path", pickled_weights, ("reward=sequence_classifier",)),
        ("model.path", all_of_its_own, ("workers=2", "irl.seed=0,1")),
    ],
    ids=["model", "pickled-model", "classifier", "pickled-classifier", "workers"],
)
def test_a_launch_with_such_a_folder(
    trials: Trials,
    small_policy: Path,
    small_classifier: Path,
    tmp_path: Path,
    option: str,
    make: Callable[[Path, Path], None],
    more: tuple[str, ...],
) -> None:
    folder = shutil.copytree(small_policy if option == "model.path" else small_classifier, tmp_path / "model")
    make(folder, tmp_path / "marker")
    with trials("a launch at a terminal with such a folder as model.path or reward.path", f"{option} {more}"):
        command = [sys.executable, str(ROOT / "launch.py"), *COMMAND, f"{option}={folder}", "until=sft", *more]
        code, output = at_a_terminal(command, tmp_path)
        assert not (tmp_path / "marker").exists(), "it was executed"
        assert [word for word in ASKED if word in output] == []
        assert code == 1, f"it ended with {code}"
        assert "Traceback" not in output
        assert str(folder) in output.replace("\r\n", ""), f"the folder is not named: {output[-300:]}"


# ------------------------------------------------------------------------------------------------------- texts


HOSTILE = (
    "<script>alert(1)</script> is a text",
    "<img src=x onerror=alert(2)> as well",
    "</td></table><iframe src=//evil.invalid></iframe>",
    "=HYPERLINK(1;2) begins like a formula",
    "@SUM(1+1) and this",
    "+1+cmd|' /C calc'!A0 too",
    "-2+3 is one",
    "\x1b[2J\x1b[31mred and clear",
    "\x1b]0;another title\x07 of the window",
    "a \r carriage return",
    "{{ 7 * 7 }} {% raw %} ${seed} [bold]markup[/bold] $(touch marker)",
    "<|endoftext|> in the middle",
)


@pytest.fixture(scope="module")
def hostile(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Two runs, with their page, on texts that all are hostile; so are the name of their file and of their folder."""
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "<img src=x onerror=alert(3)>.jsonl"
    rows = [
        {
            "prompt": f"{text} {number}",
            "completion": f" {HOSTILE[-1 - number % len(HOSTILE)]}",
            "label": number // 2 % 2,
        }
        for number, text in enumerate(HOSTILE * 12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [*COMMAND[:2], "workers=1", "tracking=offline", "data=file", f"data.path='{path}'", "irl.seed=0,1"]
    return launcher(folder, *command, "report=true", check=False)


def test_texts_of_somebody_else(trials: Trials, hostile: Launched) -> None:
    with trials("a launch over texts with markup, formulas, escapes: its end"):
        assert hostile.returncode == 0, hostile.stderr[-800:]
    with trials("no escape sequence and no control character reaches the terminal"):
        control = {letter for letter in hostile.stdout + hostile.stderr if ord(letter) < 32 and letter not in "\n\t"}
        assert control == set()
    with trials("samples.csv: every text is read back as it was"):
        prompts = {
            row["prompt"]
            for job in (0, 1)
            for row in csv.DictReader((hostile.folder / str(job) / "samples.csv").open(newline="", encoding="utf-8"))
        }
        assert prompts
        known = [text for text in HOSTILE if any(prompt.startswith(text) for prompt in prompts)]
        assert len(known) >= 3
        assert all(any(prompt.startswith(text) for text in HOSTILE) for prompt in prompts)
    pages = [hostile.folder / "report" / "index.html"]
    for text in HOSTILE[:3]:
        with trials("the page shows markup in texts and names as text", text):
            page = "".join(path.read_text(encoding="utf-8") for path in pages)
            assert text not in page
            assert "<img src=x" not in page, "the name of the data file is markup"
    with trials("nothing was executed"):
        assert list(hostile.cwd.rglob("marker")) == []


# ------------------------------------------------------------------------------------- folders of launches


def plan_outside(launch: Path, marker: Path) -> None:
    plan = json.loads((launch / "plan.json").read_text())
    plan["jobs"][0]["folder"] = "../../../../outside"
    (launch / "plan.json").write_text(json.dumps(plan))


def plan_of_nonsense(launch: Path, marker: Path) -> None:
    (launch / "plan.json").write_text(json.dumps({"command": 3, "question": ["x"], "jobs": [{"folder": 1}, "x", None]}))


def pickled_completions(launch: Path, marker: Path) -> None:
    (launch / "0" / "completions.parquet").write_bytes(pickle.dumps(Code(marker)))


def names_of_nonsense(launch: Path, marker: Path) -> None:
    edit(launch / "0" / "config.json", job={"number": "x", "name": ["<script>alert(1)</script>"]}, artifacts=3)


def a_store_elsewhere(launch: Path, marker: Path) -> None:
    edit(launch / "0" / "config.json", store={"dir": "/proc"}, artifacts={"irl": "../self", "sft": "../../etc"})


def statements_of_nonsense(launch: Path, marker: Path) -> None:
    hostile = {"family": ["x"], "name": "<script>alert(1)</script>", "effect": "1e999", "certified": {}}
    (launch / "0" / "statements.json").write_text(json.dumps([hostile, 3, None]))
    (launch / "0" / "explain.json").write_text("[" * 1000)
    for name in ("credit.parquet", "statement_values.parquet"):
        (launch / "0" / name).write_bytes(pickle.dumps(Code(marker)))


LAUNCHES = (
    statements_of_nonsense,
    plan_outside,
    plan_of_nonsense,
    pickled_completions,
    names_of_nonsense,
    a_store_elsewhere,
)


@pytest.mark.parametrize("make", LAUNCHES, ids=lambda make: make.__name__)
def test_a_launch_of_somebody_else(
    trials: Trials, hostile: Launched, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    launch = shutil.copytree(hostile.folder, tmp_path / "multirun" / "file" / hostile.folder.name)
    shutil.rmtree(launch / "report", ignore_errors=True)
    make(launch, tmp_path / "marker")
    with trials("python -m irl_exp.analysis on a launch with `..`, pickles and nonsense in its files", make.__name__):
        before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(launch)}
        command = [sys.executable, "-m", "irl_exp.analysis", str(launch)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
        assert not (tmp_path / "marker").exists(), "it was executed"
        assert "Traceback" not in done.stdout + done.stderr, done.stderr.strip().splitlines()[-1]
        assert done.returncode in (0, 2)
        after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(launch)}
        assert after == before, "it wrote elsewhere"
        lines = [line for line in done.stderr.splitlines() if line.strip() and line != HINT]
        assert len(lines) < 3, f"{len(lines)} lines"


def test_rewards_of_somebody_else(trials: Trials, tmp_path: Path) -> None:
    from irl_exp.analysis.__main__ import main

    np.savez(tmp_path / "r.npz", true_reward=np.array([Code(tmp_path / "marker")] * 3, dtype=object))
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Code(tmp_path / "marker")))
    for name in ("r.npz", "p.npz"):
        with trials("python -m irl_exp.analysis rewards on pickles", name):
            assert main(["rewards", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
            assert not (tmp_path / "marker").exists(), "it was executed"
