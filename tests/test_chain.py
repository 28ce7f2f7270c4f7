"""What the chain writes into the folder of a run."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from irl_exp.launch import run

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=4))
@example(["0"])
@example([" a\rb", "a\r\nb", "\n", "\r", 'say "hi", ok', " 12 ", "NA", ""])
def test_samples_are_read_back_as_they_were_written(texts: list[str]) -> None:
    frame = pd.DataFrame({"policy": "expert", "completion": texts, "reward": [0.5 + row for row in range(len(texts))]})
    run._write_samples(frame, Path("samples.csv"))
    found = pd.read_csv("samples.csv", keep_default_na=False, dtype={"completion": str})  # "0" alone would be a number
    pd.testing.assert_frame_equal(found, frame, check_dtype=False)
    with Path("samples.csv").open(newline="", encoding="utf-8") as file:
        assert [row["completion"] for row in csv.DictReader(file)] == texts
