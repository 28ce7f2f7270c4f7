"""The help: what is on its first page, where the rest is, and that nothing is wider than a terminal."""

from __future__ import annotations

import re

import pytest

from irl_exp import config
from irl_exp.config import CONF, ConfigError, first_page, known_groups, page_of
from irl_exp.config.help import WANTED
from irl_exp.launch import command_line

STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))
OPTION = re.compile(r"^  ([\w.]+)=", re.MULTILINE)


def sections(page: str) -> dict[str, list[str]]:
    """The options of a page (`key=default`) by the choices that have them: the line above, `of bayesian, ensemble`."""
    found: dict[str, list[str]] = {}
    for block in page.split("\n\n")[1:]:
        head, *options = re.split(r"\n(?=  [\w.]+=)", block)
        found[" ".join(head.split())] = [option.split("\n")[0].strip().split("  ")[0] for option in options]
    return found


def test_the_first_page_fits_a_terminal() -> None:
    lines = first_page("python launch.py").splitlines()
    assert len(lines) <= 86
    assert max(map(len, lines)) < 80


def test_the_first_page_has_the_groups_and_what_people_want() -> None:
    page = first_page("irl-exp")
    assert "irl-exp study=non_identifiability" in page
    assert [group for group in known_groups() if not re.search(rf"^  {group} +\w", page, re.MULTILINE)] == []
    for group in known_groups():
        for path in (CONF / group).glob("*.yaml"):
            assert path.parent.name == "local" or re.search(rf"\b{path.stem}\b", page)
    assert OPTION.findall(page) == list(WANTED)
    assert len(WANTED) == 28
    assert "  rlhf.kl_coefficient=0.7       beta, on the scale of the reward" in page.splitlines()


def test_all_pages_together_have_every_option() -> None:
    page = page_of("all")
    assert max(map(len, page.splitlines())) < 80
    assert {key for key, _ in config.option_fields()} - set(OPTION.findall(page)) == set()


def test_every_option_that_follows_no_other_is_explained() -> None:
    lines = page_of("all").splitlines()
    bare = [line for line, below in zip(lines, [*lines[1:], ""], strict=True) if re.fullmatch(r"  [\w.]+=\S+", line)
            and not below.startswith("   ")]  # fmt: skip
    assert [line for line in bare if "=${" not in line and ".parts." not in line] == []


def test_an_option_stands_beside_the_method_that_has_it() -> None:
    found = sections(page_of("irl"))
    assert "irl.members=10" in found["of ensemble"]
    assert "irl.resample_pairs=true" in found["of ensemble"]
    fitted = "of margin, failure_aware, length, placebo, random_features, reference_log_probability"
    assert found[fitted] == ["irl.resample_pairs=false"]
    assert found["of each"] == ["irl.seed=${seed}"]
    assert found["more: --help irl/backbone, irl/features, irl/loss, irl/published"] == []
    assert sections(page_of("irl/loss"))["of bradley_terry, logistic"] == ["irl.loss.temperature=1.0"]


def test_a_page_may_be_of_one_choice() -> None:
    found = sections(page_of("irl=bayesian"))
    assert "irl.posterior=laplace" in found["of bayesian"]
    assert "of ensemble" not in found


def test_what_a_file_sets_is_told_with_it() -> None:
    assert sections(page_of("irl/features"))["of last_token"] == [
        "irl.features.last_token.layers=[-1]",
        "irl.features.last_token.pooling=last",
    ]
    assert "rlhf.steps=12000" in sections(page_of("model"))["of pythia_410m"]


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_tells_its_question(study: str) -> None:
    assert config.question_of(study) in " ".join(page_of("study").split())


def test_a_page_of_a_node_and_of_an_option() -> None:
    assert "sft.steps=350" in page_of("sft")
    assert OPTION.findall(page_of("irl.ridge")) == ["irl.ridge"]
    assert "of several the best on select is taken" in " ".join(page_of("irl.ridge").split())
    assert "workers" in OPTION.findall(page_of("run"))


def test_what_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"--help irl/los: .* Did you mean 'irl/loss'\?"):
        page_of("irl/los")


@pytest.mark.parametrize(
    ("line", "told"),
    [("--help", "The chain"), ("-h irl/loss", "irl/loss=max_margin"), ("irl --help rlhf", "rlhf=rloo")],
)
def test_the_command_line_answers(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.answer_help(line.split())
    assert caught.value.code == 0
    assert told in capsys.readouterr().out


def test_who_asks_for_no_help_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.answer_help(["-m", "irl.seed=1", "--cfg", "job", "--hydra-help"])
    assert capsys.readouterr().out == ""
