"""Texts: three file formats, columns by name, errors that say where, and a split in which no prompt is in two parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import DEVICE, compose

from irl_exp import chain
from irl_exp.config import CommentsConfig, ConfigError, FileConfig, RealToxicityPromptsConfig
from irl_exp.launch import preflight
from irl_exp.texts import data, files
from irl_exp.texts.messages import as_text, messages_of

patient = settings(deadline=None)  # a busy machine is no failure

ROWS: list[dict[str, Any]] = [
    {"prompt": "The bus", "completion": " is late, again.", "label": 0.2},
    {"prompt": "The  old bridge", "completion": "\nwas closed\tfor  good", "label": 0.5},
    {"prompt": "Sie sagt: naïve", "completion": ' 🙂 "quoted", with commas', "label": None},
    {"prompt": "You", "completion": " fool", "label": 1},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The same rows in the format of the ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def read(path: Path, **options: Any) -> pd.DataFrame:
    return data.read(FileConfig(seed=0, path=path, **options))


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(data.DataError) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_three_formats_read_alike(tmp_path: Path, ending: str) -> None:
    found = read(write(tmp_path / f"texts.{ending}", ROWS))
    assert found["prompt"].tolist() == [row["prompt"] for row in ROWS]
    assert found["completion"].tolist() == [row["completion"] for row in ROWS]
    assert found["toxic"].isna().tolist() == [False, False, True, False]
    assert found["toxic"].fillna(False).tolist() == [False, True, False, True], "toxic from 0.5 on"
    assert found["toxic"].dtype == "boolean"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_dot_enters_a_nested_object(tmp_path: Path, ending: str) -> None:
    rows = [
        {"prompt": {"text": "The bus", "toxicity": 0.9}, "continuation": {"text": " is late", "toxicity": 0.1}},
        {"prompt": {"text": "You are", "toxicity": 0.1}, "continuation": {"text": " a fool", "toxicity": 0.9}},
    ]
    path = write(tmp_path / f"texts.{ending}", rows)
    found = data.read(RealToxicityPromptsConfig(seed=0, path=path))
    assert found["prompt"].tolist() == ["The bus", "You are"]
    assert found["completion"].tolist() == [" is late", " a fool"]
    assert found["toxic"].tolist() == [False, True], "the label is that of the continuation"


def test_columns_go_by_the_names_that_are_given(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.csv", [{"x": "The bus", "y": " is late", "bad": 1, "label": 0}])
    found = read(path, prompt="x", completion="y", label="bad")
    assert found.to_dict("records") == [{"prompt": "The bus", "completion": " is late", "toxic": True}]


def test_without_a_label_column_every_label_is_missing(tmp_path: Path) -> None:
    assert read(write(tmp_path / "texts.jsonl", ROWS), label=None)["toxic"].isna().all()


def test_whole_texts_are_cut_in_half_by_words(tmp_path: Path) -> None:
    rows = [{"text": "one two  three\nfour five", "label": 0}, {"text": "one two", "label": 0}]
    found = read(write(tmp_path / "texts.jsonl", rows), text="text")
    assert found["prompt"].tolist() == ["one two", "one"]
    assert found["completion"].tolist() == ["  three\nfour five", " two"]


def test_texts_without_a_prompt_or_a_completion_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "", "completion": " only", "label": 0},
        {"prompt": "only", "completion": " \n", "label": 1},
        {"prompt": None, "completion": " only", "label": 0},
        {"prompt": "both", "completion": " parts", "label": 1},
    ]
    found = read(write(tmp_path / "texts.jsonl", rows))
    assert found.to_dict("records") == [{"prompt": "both", "completion": " parts", "toxic": True}]


def test_a_long_prompt_is_cut_and_its_rest_starts_the_completion(tmp_path: Path) -> None:
    rows = [{"prompt": "a b  c d", "completion": " e", "label": 0}]
    found = read(write(tmp_path / "texts.jsonl", rows), max_prompt_words=2)
    assert found.loc[0, ["prompt", "completion"]].tolist() == ["a b", "  c d e"]


def test_a_completion_without_a_leading_space_stays_out_of_the_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "How are you?", "completion": "Fine, thank you.", "label": 0}]
    found = read(write(tmp_path / "texts.jsonl", rows))
    assert found.loc[0, "prompt"] == "How are you?"
    assert found.loc[0, "completion"].strip() == "Fine, thank you."


def test_words_of_a_csv_file_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("prompt,completion,label\nNone, of them,0\nand they said,null,1\n", encoding="utf-8")
    assert read(path)["prompt"].tolist() == ["None", "and they said"]


@patient
@given(st.text(alphabet="ab .,\n\té\u00a0", max_size=40), st.integers(1, 6))
def test_cut_joins_to_the_text_and_keeps_so_many_words(text: str, words: int) -> None:
    prompt, completion = data.cut(text, words)
    assert prompt + completion == text
    assert prompt.split() == text.split()[:words]
    assert not prompt or not prompt[-1].isspace()
    assert not completion or completion[0].isspace() or not prompt


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a",', "line 3: not valid JSON"),
        ('["a", "b", 1]', "line 3: expected an object, found list"),
        ('{"prompt": "a", "label": 0}', "line 3: field 'completion' is missing; the line has label, prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "texts.jsonl", ROWS)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]), encoding="utf-8")
    assert f"{path}, {message}" in error_of(path)


def test_a_missing_nested_field_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", [{"prompt": {"txt": "a"}, "completion": " b", "label": 0}])
    assert "line 1: field 'prompt.text' is missing" in error_of(path, prompt="prompt.text")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_missing_column_lists_the_columns_and_the_remedy(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"texts.{ending}", [{"x": "a", "y": " b", "label": 0}])
    message = error_of(path)
    assert "column 'prompt' is missing; there are x, y, label." in message
    assert "data.prompt" in message


def test_a_label_that_is_no_number_names_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.csv", [*ROWS, {"prompt": "a", "completion": " b", "label": "toxic"}])
    assert "row 5: label 'toxic' is not a number" in error_of(path)


def test_an_unknown_ending_lists_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "texts.xlsx").write_bytes(b"")
    assert "must be one of .jsonl, .json, .csv, .parquet" in error_of(tmp_path / "texts.xlsx")


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    config = FileConfig(seed=0, path=write(tmp_path / "texts.csv", ROWS))
    (tmp_path / "texts.csv").unlink()
    with pytest.raises(data.DataError, match=r"texts\.csv: there is no such file"):
        data.read(config)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("unclosed.csv", b'prompt,completion,label\n"a, b,0\n'),
        ("latin.csv", b"prompt,completion,label\nna\xefve, b,0\n"),
    ],
)
def test_a_damaged_csv_file_is_a_data_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}: not a readable csv file" in error_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("damaged.parquet", b"not parquet at all"),
        ("empty.jsonl", b""),
        ("header.csv", b"prompt,completion,label\n"),
        ("latin.jsonl", b'{"prompt": "na\xefve", "completion": " b", "label": 0}\n'),
    ],
)
def test_a_damaged_file_of_any_kind_is_a_data_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in error_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.csv", b"prompt,completion,label\ncaf\xe9 noir,c d,1\n", "not a readable csv file"),
        ("x.jsonl", b"[" * 10**5, "line 1: not valid JSON: maximum recursion depth"),
        ("x.csv", b"text,\x1b[2J\na b,c\n", r"there are text, \x1b[2J."),
        ("a\x1b[2J\nb.csv", b"text\na b\n", r"a\x1b[2J\nb.csv: column"),
    ],
    ids=["bytes", "depth", "column", "name"],
)
def test_what_is_quoted_of_a_file_is_one_printable_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError) as caught:
        data.read(FileConfig(path=tmp_path / name, seed=0))
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("column", ["prompt", "completion", "label"])
def test_bytes_of_a_parquet_file_that_are_no_text_are_told(tmp_path: Path, column: str) -> None:
    row = {"prompt": "a b", "completion": "c d", "label": "1", column: "noir cafe"}
    pd.DataFrame([row]).to_parquet(tmp_path / "x.parquet", compression=None, use_dictionary=False)
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content.replace(b"cafe", b"caf\xe9"))
    with pytest.raises(data.DataError, match=f"column '{column}' is not valid UTF-8"):
        data.read(FileConfig(path=tmp_path / "x.parquet", seed=0))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(data.DataError, match=r"x\.jsonl cannot be read .Input/output error."):
        data.read(FileConfig(path=tmp_path / "x.jsonl", seed=0))


def test_brackets_in_a_file_name_are_no_pattern(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "texts[1].jsonl", ROWS))) == len(ROWS)


@pytest.mark.parametrize("prompt", [5, [], ["Hello"], [{"role": "user"}], {"role": "user", "content": "Hello"}])
def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path, prompt: Any) -> None:
    assert "prompt" in error_of(write(tmp_path / "texts.jsonl", [{"prompt": prompt, "completion": " b", "label": 0}]))


def test_messages_are_a_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    prompts = [[{"role": "user", "content": "Hello"}], [system, {"role": "user", "content": "Hello you"}]]
    found = read(write(tmp_path / "texts.jsonl", [{"prompt": prompt} for prompt in prompts]))["prompt"]
    assert found[0] == "Hello"
    assert [messages_of(prompt) for prompt in found] == prompts
    assert as_text(found[1]) == "system: Be kind.\n\nuser: Hello you"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_of_prompts_alone_is_split_in_three(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"prompts.{ending}", [{"prompt": f"Prompt number {number}"} for number in range(100)])
    config = FileConfig(path=path, seed=0)
    texts = data.split(data.read(config), config)
    assert data.are_prompts(texts)
    assert texts["part"].value_counts().to_dict() == {"fit": 59, "test": 29, "select": 12}
    few = config.model_copy(update={"fit_prompts": 20, "select_prompts": 5, "test_prompts": 15})
    counts = data.split(data.read(few), few)["part"].value_counts().to_dict()
    assert counts == {"spare": 60, "fit": 20, "test": 15, "select": 5}
    assert not data.shortened_prompts(texts)
    assert "100 prompts were cut" in data.shortened_prompts(
        data.read(config.model_copy(update={"max_prompt_words": 2}))
    )
    with pytest.raises(data.DataError, match=r"3 distinct prompts: give 10 or more"):
        data.split(data.read(config).head(3), config)


def test_a_file_whose_completions_have_another_name_is_no_list_of_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.csv", [{"prompt": "a b", "answer": " c"}])
    assert "column 'reply' is missing" in error_of(path, completion="reply")


# ------------------------------------------------------------------------------------------------- labels


def labels_of(path: Path, labels: Sequence[Any], **options: Any) -> list[Any]:
    rows = [{"prompt": f"p{number}", "completion": " c", "label": label} for number, label in enumerate(labels)]
    return list(read(write(path, rows), **options)["toxic"])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_classes_are_no_toxicities(tmp_path: Path, ending: str) -> None:
    """0 hate, 1 offensive, 2 neither: what is at least 0.5 would make hate civil, and the civil toxic."""
    path = tmp_path / f"texts.{ending}"
    with pytest.raises(
        data.DataError, match=r"(row|line) 3: label 2 lies outside \[0, 1\]; there are 0, 1, 2 .*data\.toxic="
    ):
        labels_of(path, [0, 1, 2])
    assert labels_of(path, [0, 1, 2], toxic=[0, 1]) == [True, True, False]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_words_may_be_labels(tmp_path: Path, ending: str) -> None:
    path, words = tmp_path / f"texts.{ending}", ["hate", "none", None, "Hate"]
    assert labels_of(path, words, toxic=["hate"]) == [True, False, pd.NA, False], "exact"
    with pytest.raises(
        data.DataError, match=r"data\.toxic=\['hat'\]: no label of .* is 'hat'; there are 'Hate', 'hate', "
    ):
        labels_of(path, words, toxic=["hat"])
    with pytest.raises(data.DataError, match=r"1: label 'hate' is not a number; there are 'Hate', .*data\.toxic="):
        labels_of(path, words)


def test_numbers_and_words_are_not_the_same_label(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    assert labels_of(path, [1, 0, None], toxic=[1.0]) == [True, False, pd.NA]
    assert labels_of(path, [True, False], toxic=[True]) == [True, False]
    assert labels_of(path, ["1", "0"], toxic=["1"]) == [True, False]
    with pytest.raises(data.DataError, match=r"no label of .* is 1; there are '0', '1'"):
        labels_of(path, ["1", "0"], toxic=[1])


@pytest.mark.parametrize("label", [-0.1, 1.5, "inf", "nan", [1], "1e999"])
def test_a_label_that_is_no_toxicity_is_refused(tmp_path: Path, label: Any) -> None:
    with pytest.raises(data.DataError, match=r"line 1: label .* (lies outside|is not a number)"):
        labels_of(tmp_path / "texts.jsonl", [label])


def test_the_share_of_toxic_labels_is_told_and_a_rare_class_warned_of() -> None:
    def texts(toxic: int, civil: int) -> pd.DataFrame:
        labels = [True] * toxic + [False] * civil + [pd.NA]
        return pd.DataFrame({"toxic": pd.array(labels, dtype="boolean")})

    assert data.share_of_toxic(texts(1, 7)) == "12.5 % of 8 labels toxic"
    assert data.share_of_toxic(texts(0, 0)) == "no labels"
    assert data.too_few(texts(data.FEW, data.FEW)) == data.too_few(texts(0, 0)) == ""
    assert data.too_few(texts(data.FEW - 1, 100)).startswith("only 49 of 149 labelled texts are toxic")
    assert data.too_few(texts(100, 0)).startswith("only 0 of 100 labelled texts are civil")


# ------------------------------------------------------------------------------------------- texts without end


@pytest.mark.parametrize("column", ["prompt", "completion"])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_text_of_a_megabyte_is_refused_with_its_place(tmp_path: Path, ending: str, column: str) -> None:
    """As an unclosed quote makes one: no model reads it, and what tries asks for all memory."""
    path = write(tmp_path / f"texts.{ending}", [*ROWS, {**ROWS[0], column: 250_000 * "word "}])
    assert f"5: column '{column}' holds 1,250,000 characters; a text may have 100,000" in error_of(path)


def test_a_line_of_many_megabytes_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", [*ROWS, {**ROWS[0], "other": files.LONGEST_LINE * "x"}, *ROWS])
    assert f"{path}, line 5: more than 10,000,000 bytes" in error_of(path)


def test_the_beginning_of_a_long_completion_is_kept(tmp_path: Path) -> None:
    long = [" " + 400 * "a ", " " + 4000 * "b", " " + 2000 * "é", "\n" + 256 * " a"]
    found = read(write(tmp_path / "texts.parquet", [{**ROWS[0], "completion": text} for text in long]))["completion"]
    assert found.tolist() == [" " + " ".join(256 * "a"), " " + 2047 * "b", " " + 1023 * "é", long[3]]


def test_a_word_without_end_is_no_prompt(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "prompt": 3000 * "é"}, {**ROWS[0], "prompt": 3000 * " " + "word"}]
    found = read(write(tmp_path / "texts.parquet", rows))
    assert found["prompt"].tolist() == [512 * "é"], "of white space nothing is left"
    assert found["completion"].tolist() == [1024 * "é"]


def test_the_embedded_comments_are_far_from_every_bound() -> None:
    texts = data.read(comments())
    assert texts["completion"].str.split().str.len().max() < data.COMPLETION_WORDS / 8
    assert texts["completion"].str.len().max() < data.COMPLETION_BYTES / 8
    assert texts["prompt"].str.len().max() < data.PROMPT_BYTES / 8


# -------------------------------------------------------------------------------------------------- the split


def comments(seed: int = 0, **sizes: int) -> CommentsConfig:
    return CommentsConfig(seed=seed, count=600, **{"fit_prompts": 40, "select_prompts": 8, "test_prompts": 20, **sizes})


def parts(texts: pd.DataFrame) -> dict[str, str]:
    return dict(zip(texts["prompt"], texts["part"], strict=True))


def test_no_prompt_is_in_two_parts_and_every_part_has_its_size() -> None:
    texts = data.split(data.read(comments()), comments())
    assert (texts.groupby("prompt")["part"].nunique() == 1).all()
    sizes = {part: len(data.prompts_of(texts, part)) for part in data.PARTS}
    rest = texts["prompt"].nunique() - 68
    assert sizes == {
        "fit": 40,
        "select": 8,
        "test": 20,
        "reward": round(0.35 * rest),
        "sft": rest - round(0.35 * rest),
    }


def test_the_split_follows_its_seed_and_seed_0_is_a_seed() -> None:
    texts = data.read(comments())
    first, second, other = (parts(data.split(texts, comments(seed))) for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_the_split_does_not_depend_on_the_order_of_the_rows() -> None:
    texts = data.read(comments())
    shuffled = texts.sample(frac=1, random_state=0)
    assert parts(data.split(texts, comments())) == parts(data.split(shuffled, comments()))


def test_comments_for_test_are_in_test_alone() -> None:
    texts = data.read(comments())
    assert (texts["for_test"] == (data.split(texts, comments())["part"] == "test")).all()


def test_more_prompts_for_test_than_its_blocks_make_are_refused() -> None:
    config = CommentsConfig(seed=0, count=60_000, test_prompts=5000)
    with pytest.raises(data.DataError, match=r"\d{4} of them made for test; .*data\.test_prompts"):
        data.split(data.read(config), config)


def test_overlap_counts_what_test_shares_with_the_fitted_parts() -> None:
    rows = [
        ("sft", "One two three four five", " the bus is late again, you fool"),
        ("fit", "six seven eight nine", " only its prompt is fitted, not this"),
        ("select", "ten ten ten ten", " nobody is fitted on these five words"),
        ("test", "one TWO three four", " the bus is late again, you fool"),
        ("test", "six seven eight nine ten", " The bus is late! Always so, my friend"),
        ("test", "ten ten ten ten", " nobody is fitted"),
    ]
    found = data.overlap(pd.DataFrame(rows, columns=["part", "prompt", "completion"]))
    assert found == {
        "completions_seen": pytest.approx(1 / 3),
        "completion_4grams_seen": pytest.approx((4 + 1) / (4 + 5)),
        "prompt_4grams_seen": pytest.approx((1 + 1) / (1 + 2 + 1)),
    }
    short = pd.DataFrame({"part": ["test", "sft"], "prompt": "a", "completion": "b"})
    assert data.overlap(short) == {"completions_seen": 1.0}, "a text of three words has no 4-gram"


def test_splitting_keeps_the_rows_in_place() -> None:
    texts = data.read(comments())
    expected = texts.drop(columns="for_test")
    pd.testing.assert_frame_equal(data.split(texts, comments()).drop(columns="part"), expected)


def test_prompts_of_a_part_are_distinct_and_in_a_fixed_order() -> None:
    texts = pd.DataFrame({"prompt": ["b", "a", "b", "c"], "part": ["fit", "fit", "fit", "test"]})
    assert data.prompts_of(texts, "fit") == ["a", "b"]


def test_too_few_prompts_are_refused_with_a_remedy() -> None:
    config = comments(fit_prompts=5000)
    with pytest.raises(
        data.DataError,
        match=r"prompts, 20 of them made for test; fit, select and test ask for 5028 .*data\.fit_prompts",
    ):
        data.split(data.read(config), config)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_split_that_leaves_a_part_empty_is_refused(fraction: float) -> None:
    prompts = [f"prompt {number}" for number in range(22)]
    texts = pd.DataFrame({"prompt": prompts, "completion": " text"})
    config = CommentsConfig(seed=0, fit_prompts=4, select_prompts=4, test_prompts=4, reward_fraction=fraction)
    with pytest.raises(data.DataError, match="reward_fraction"):
        data.split(texts, config)


def labelled_file(path: Path, labels: Sequence[float | None]) -> Path:
    rows = [
        {"prompt": f"prompt number {number}", "completion": " text", "label": labels[number % len(labels)]}
        for number in range(100)
    ]
    return write(path, rows)


def check(*overrides: str) -> None:
    """Preflight of a whole chain."""
    for step in chain.build(compose(*overrides), DEVICE).values():
        preflight.check(step)


def test_a_classifier_without_labels_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = labelled_file(tmp_path / "texts.jsonl", [0.0, 1.0])
    check("data=file", f"data.path={path}")
    with pytest.raises(preflight.PreflightError, match=r"data\.label is not set"):
        check("data=file", f"data.path={path}", "data.label=null")


@pytest.mark.parametrize("labels", [[0.0], [1.0], [None, 0.0]])
def test_a_classifier_with_labels_of_one_class_is_refused_before_anything_runs(
    tmp_path: Path, labels: list[float | None]
) -> None:
    path = labelled_file(tmp_path / "texts.jsonl", labels)
    with pytest.raises(preflight.PreflightError, match="needs texts of both labels"):
        check("data=file", f"data.path={path}")


@pytest.mark.parametrize("new_tokens", [500, 508])
def test_the_longest_prompt_and_its_completion_fit_into_what_a_model_reads(tmp_path: Path, new_tokens: int) -> None:
    """512 tokens of a new model; a word has at least one."""
    rows = [{"prompt": f"prompt number {n} of four", "completion": " text", "label": n % 2} for n in range(100)]
    mine = ("data=file", f"data.path={write(tmp_path / 'texts.jsonl', rows)}", f"max_new_tokens={new_tokens}")
    if new_tokens + 5 <= 512:
        check(*mine)
        return
    with pytest.raises(
        preflight.PreflightError, match=r"max_new_tokens=508: the model reads 512 .* prompt has 5 words"
    ):
        check(*mine)


def test_a_checkpoint_says_itself_what_it_reads(small_policy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_policy, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 64}))
    mine = ("model.tuned=true", f"model.path={folder}")
    check(*mine)
    with pytest.raises(preflight.PreflightError, match=r"max_new_tokens=64: the model reads 64 tokens at once"):
        check(*mine, "max_new_tokens=64")
    with pytest.raises(preflight.PreflightError, match=r"sft\.max_tokens=65: model=tiny reads 64 tokens at once"):
        check(f"model.path={folder}", "sft.max_tokens=65")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model_type": "nope"}', '{"model_type": "gpt2", "n_layer": '])
def test_a_config_that_is_of_no_model_is_refused(content: str, small_policy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_policy, tmp_path / "model"))
    (folder / "config.json").write_text(content)
    with pytest.raises(preflight.PreflightError, match=r"model\.path=.* cannot be opened: "):
        check(f"model.path={folder}")


def test_unreadable_data_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = labelled_file(tmp_path / "texts.csv", [0.0, 1.0])
    with pytest.raises(data.DataError, match="column 'question' is missing"):
        check("data=file", f"data.path={path}", "data.prompt=question")


def test_a_path_that_does_not_exist_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        compose("data=file", f"data.path={tmp_path / 'nothing.jsonl'}")


def test_the_embedded_comments_have_both_labels_in_every_part() -> None:
    texts = data.split(data.read(comments()), comments())
    assert texts["toxic"].notna().all()
    assert (texts.groupby("part")["toxic"].nunique() == 2).all()
    assert set(np.unique(texts["part"])) == set(data.PARTS)
