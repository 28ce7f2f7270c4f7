"""The sentiment of English texts by TextBlob's lexicon, which is part of its package: no download, no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sentiments(texts: Sequence[str]) -> NDArray[np.float64]:
    """Polarity in [-1, 1], from bad to good, and subjectivity in [0, 1] of each text: (n, 2).

    Means over the words that the lexicon has; negations and intensifiers before a word change its value. A text
    without any such word gets (0, 0).
    """
    from textblob.en import sentiment  # seconds: it imports nltk

    # What TextBlob(text).sentiment asks, which makes a class of its own for each answer: half of its time.
    return np.array([sentiment(text) for text in texts], dtype=np.float64).reshape(len(texts), 2)


def polarity(texts: Sequence[str]) -> NDArray[np.float64]:
    """The first column of `sentiments`: (n,)."""
    return sentiments(texts)[:, 0]
