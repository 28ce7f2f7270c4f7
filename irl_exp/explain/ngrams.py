"""Phrases: how they are counted, which of them tell two corpora apart, and how one is put into or taken out of a text.

Words are runs of letters and digits (an apostrophe inside is kept), and single marks of punctuation; lower case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
WORD = r"\w+(?:'\w+)*|[^\w\s]"


def vectorizer(**options: Any) -> Any:
    """Whether a text has each phrase: n-grams of WORD, lower case, counted once a text."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=WORD, binary=True, dtype=np.float32, **options)


def frequent(texts: Sequence[str], fit: NDArray[np.bool_], *, longest: int, least: float) -> tuple[list[str], Any]:
    """Phrases that at least `least` of the texts of `fit` have, and (n, k) whether each text has them (CSR)."""
    counts = vectorizer(ngram_range=(1, longest))
    try:
        found = counts.fit_transform([text for text, inside in zip(texts, fit, strict=True) if inside])
    except ValueError:  # no word at all
        return [], sparse.csr_matrix((len(texts), 0), dtype=np.float32)
    often = np.flatnonzero(np.asarray(found.sum(axis=0))[0] >= least)
    phrases = counts.get_feature_names_out()[often].tolist()
    if not phrases:
        return [], sparse.csr_matrix((len(texts), 0), dtype=np.float32)
    inside = vectorizer(ngram_range=(1, longest), vocabulary=phrases)
    return phrases, inside.transform(texts).tocsr()


def log_odds(tuned: Floats, base: Floats, n_tuned: int, n_base: int, *, prior: float) -> Floats:
    """(k,) z of the log-odds ratio of each phrase, with an informative Dirichlet prior.

    Monroe, Colaresi and Quinn, "Fightin' Words" (2008), equations 15, 16 and 19, counted by completion: y completions
    of n have a phrase, a = prior * (its share in both), delta = log (y + a) / (n + prior - y - a) of tuned less that of
    base, z = delta / sqrt(1 / (y_tuned + a) + 1 / (y_base + a)).
    """
    pseudo = prior * (tuned + base) / (n_tuned + n_base)
    of = [
        np.log(count + pseudo) - np.log(np.maximum(total + prior - count - pseudo, 0.5))
        for count, total in ((tuned, n_tuned), (base, n_base))
    ]
    return np.asarray((of[0] - of[1]) / np.sqrt(1 / (tuned + pseudo) + 1 / (base + pseudo)))


def written(phrase: str) -> str:
    """A phrase as people write it: no space before punctuation."""
    return re.sub(r" ([^\w\s(\[])", r"\1", phrase)


def pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Finds each of the phrases in a text, longest first, whatever the case and the spaces between its words."""
    parts = [r"\s*".join(map(re.escape, re.findall(WORD, phrase))) for phrase in sorted(phrases, key=len, reverse=True)]
    return re.compile("|".join(rf"(?<!\w){part}(?!\w)" if part[-1].isalnum() else part for part in parts), re.I)


def taking_out(phrases: Sequence[str]) -> Callable[[str], str | None]:
    """Edit: all of them deleted; None where a text has none or nothing else."""
    find = pattern(phrases)

    def edit(text: str) -> str | None:
        left = re.sub(r"\s+([,.!?;:])", r"\1", re.sub(r"\s{2,}", " ", find.sub("", text)))
        return left if left != text and left.strip(" ,.!?;:") else None

    return edit


def putting_in(phrase: str) -> Callable[[str], str | None]:
    """Edit: the phrase added at the end, before the last full stop; None where the text has it already."""
    find, words = pattern([phrase]), written(phrase)

    def edit(text: str) -> str | None:
        if find.search(text) or not text.strip():
            return None
        body = text.rstrip()
        mark = body[-1] if body[-1] in ".!?" else ""
        body = body[: len(body) - len(mark)]
        joint = "" if re.match(r"[^\w(]", words) else " "
        return f"{body}{joint}{words}{'' if words[-1:] in '.!?' else mark}"

    return edit
