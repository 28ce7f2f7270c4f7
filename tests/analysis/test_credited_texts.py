"""Texts with the credit of each token: which are shown, in which shades, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import small_statements
from small_statements import CREDITS, TOKENS

from irl_exp.analysis import credit
from irl_exp.analysis.credit import NoCredit


def read(folder: Path, table: pd.DataFrame | None = None) -> credit.Credited:
    (small_statements.credit() if table is None else table).to_parquet(folder / "credit.parquet")
    return credit.read(folder)


def test_the_outermost_of_both_policies_are_shown_and_none_twice(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.count == 8
    for policy in ("base", "tuned"):
        most, least = (found.ends[end][policy] for end in ("most", "least"))
        assert [text.reward for text in most] == ["+0.75", "+0.25"]
        assert [text.reward for text in least] == ["-0.75", "-0.25"]
    assert found.ends["most"]["base"][0].prompt == "A tram,"


def test_the_credits_of_a_text_add_up_to_its_reward(tmp_path: Path) -> None:
    text = read(tmp_path).ends["most"]["tuned"][0]
    assert "".join(token.text for token in text.tokens) == "".join(TOKENS)
    assert sum(float(token.credit) for token in text.tokens) == pytest.approx(1.5 * sum(CREDITS), abs=0.03)


def test_shades_follow_the_sign_and_the_size(tmp_path: Path) -> None:
    found = read(tmp_path)
    shades = [token.shade for token in found.ends["most"]["base"][0].tokens]
    assert shades == ["c2", "c1", "", "p1", "p4"]
    assert [token.shade for token in found.ends["least"]["base"][0].tokens] == ["p2", "p1", "", "c1", "c4"]
    assert list(found.shades) == ["c4", "c3", "c2", "c1", "none", "p1", "p2", "p3", "p4"]
    assert found.shades["p4"] == found.shades["c4"].replace("-", "+")


def test_tokens_are_in_their_order_whatever_that_of_the_rows(tmp_path: Path) -> None:
    shuffled = small_statements.credit().sample(frac=1.0, random_state=1)
    assert read(tmp_path, shuffled) == read(tmp_path)


def test_signs_that_are_not_printable_are_escaped(tmp_path: Path) -> None:
    text = read(tmp_path, small_statements.credit(("\x1b[2J", "\u202e", "<b>", "\n", ""))).ends["most"]["base"][0]
    assert [token.text for token in text.tokens] == ["\\x1b[2J", "\\u202e", "<b>", "\\n", credit.END]


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoCredit, match=r"credit\.parquet is not there"):
        credit.read(tmp_path)
    (tmp_path / "credit.parquet").write_bytes(b"no parquet")
    with pytest.raises(NoCredit, match="cannot be read"):
        credit.read(tmp_path)
    table = small_statements.credit()
    with pytest.raises(NoCredit, match="no column token"):
        read(tmp_path, table.drop(columns="token"))
    with pytest.raises(NoCredit, match="no finite credits"):
        read(tmp_path, table.assign(credit=float("nan")))
    with pytest.raises(NoCredit, match="no finite credits"):
        read(tmp_path, table.head(0))
    with pytest.raises(NoCredit, match="no token has any credit"):
        read(tmp_path, table.assign(credit=0.0))
