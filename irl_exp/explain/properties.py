"""Countable properties of an English text: word lists of our own, marks, shapes, sentiment.

The word lists are short and of common English; they hold what a reader would name first, and none was chosen by looking
at a reward. Readability is Flesch's formula with syllables counted as groups of vowels. A property is a share of texts
(it has the thing or not) or, where `graded`, a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irl_exp.explain import ngrams
from irl_exp.texts import sentiment

Floats = NDArray[np.float64]
Edit = Callable[[str], "str | None"]

LISTS: dict[str, tuple[str, str]] = {
    "second person": ("addresses the reader as 'you'", "you your yours yourself yourselves u ur you're you've you'll"),
    "you are": ("says 'you are'", "you're|you are|u r|you were|you sound|you look|you seem"),
    "first person": ("speaks of 'I', 'me', 'my'", "i me my mine myself i'm i've i'd i'll"),
    "first person plural": ("speaks of 'we', 'us', 'our'", "we us our ours ourselves we're we've we'll"),
    "third person": (
        "speaks of 'he', 'she' or 'they'",
        "he she they him her them his hers their theirs they're he's she's",
    ),
    "negation": (
        "has a negation",
        "not no never nothing nobody none neither nor cannot without can't don't doesn't didn't isn't aren't wasn't "
        "weren't won't wouldn't shouldn't couldn't hasn't haven't ain't",
    ),
    "insult": (
        "has an insulting word",
        "idiot idiots fool fools moron morons stupid dumb loser losers liar liars pathetic worthless useless clown "
        "clowns parasite coward cowards hypocrite hypocrites fraud frauds imbecile halfwit dimwit jerk jerks scum "
        "trash garbage disgrace disgusting ugly ignorant crook crooks thief rat rats pig pigs snake brainless clueless "
        "miserable ridiculous shameful crap shit fuck fucking bastard bitch asshole damn dumbass retard retarded "
        "vermin filth creep lunatic nutcase|shut up|get lost|go away",
    ),
    "praise": (
        "has a word of praise",
        "good great nice excellent wonderful amazing brilliant fantastic lovely beautiful perfect superb helpful kind "
        "kindly friendly talented gem hero legend genius expert awesome delightful charming best love loved stunning "
        "pleasant impressive outstanding useful clear",
    ),
    "thanks": ("thanks somebody", "thanks thank thankful grateful gratitude appreciate appreciated cheers"),
    "apology": ("apologises", "sorry apologies apologise apologize apology regret pardon|my fault|my bad"),
    "please": ("says 'please' or asks kindly", "please kindly|could you|would you|may i|if you like"),
    "greeting": (
        "greets or wishes well",
        "hello hi hey welcome congratulations congrats|good luck|all the best|best wishes|good morning|have a",
    ),
    "hedge": (
        "hedges",
        "maybe perhaps possibly probably seems seem apparently somewhat fairly roughly might may could guess suppose "
        "likely usually sometimes almost|i think|i feel|i believe|in my opinion|kind of|sort of|my opinion",
    ),
    "certainty": (
        "is certain",
        "always never definitely certainly clearly obviously absolutely surely undoubtedly totally completely every "
        "everyone everybody nobody|no doubt|of course",
    ),
    "intensifier": ("has an intensifier", "very really so extremely incredibly truly quite totally utterly highly too"),
    "positive feeling": (
        "speaks of joy",
        "happy glad joy enjoy enjoyed fun pleased delighted smile love proud excited lucky satisfied relaxed",
    ),
    "negative feeling": (
        "speaks of anger, fear or sorrow",
        "sad angry hate hated afraid annoyed annoying tired upset hurt worried terrible awful horrible worst bad "
        "disappointed boring fear furious bitter",
    ),
    "contrast": ("sets one thing against another", "but however although though yet despite whereas instead still"),
    "reason": ("gives a reason", "because since therefore thus hence|due to|thanks to|so that|that is why"),
    "request": (
        "tells the reader to do something",
        "let's|try to|make sure|think about|ask the|go to|look at|read the|get lost|shut up|you should|you must|"
        "you need|you have to|do not|don't",
    ),
    "reported speech": (
        "reports what others say",
        "said says say told tells claims claimed called calls call calling asked asks",
    ),
    "comparison": ("compares", "more most less least better best worse worst than"),
    "violence": (
        "speaks of violence",
        "kill killed killing die dead death fight hit beat shoot shot gun war attack attacked murder blood burn",
    ),
    "money": ("speaks of money", "money price prices cost costs pay paid cheap expensive fee fees dollar dollars"),
    "family": (
        "speaks of family or friends",
        "mother father brother sister wife husband son daughter grandmother grandfather friend friends family child",
    ),
    "time": (
        "says when",
        "today yesterday tomorrow now then week weeks day days month months year years morning night evening sunday",
    ),
    "question word": ("has a question word", "what why how when where who which whose"),
    "modal of duty": ("says what should be done", "should must ought need needs|have to|has to"),
}
"""Name -> (what it says of a text, words by blanks and phrases after bars)."""


@dataclass(frozen=True)
class Property:
    """A property of texts.

    Attributes:
        unit: of a graded one, "" otherwise.
        out, into: edits that take it out and put it in.
    """

    name: str
    wording: str
    unit: str = ""
    out: Edit | None = None
    into: Edit | None = None


def entries(words: str) -> list[str]:
    """The words and phrases of a list."""
    first, *phrases = words.split("|")
    return [*first.split(), *phrases]


def table(texts: Sequence[str]) -> tuple[list[Property], Floats]:
    """All properties, and (n, k) their values."""
    distinct, back = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    found = {**_lists(distinct.tolist()), **_marks(distinct.tolist()), **_shapes(distinct.tolist())}
    return [PROPERTIES[name] for name in found], np.stack([*found.values()], axis=1)[back]


def _lists(texts: list[str]) -> dict[str, Floats]:
    """Whether a text has a word of each list: one pass over the texts for all lists."""
    lists = {name: sorted({" ".join(re.findall(ngrams.WORD, item)) for item in LISTED[name]}) for name in LISTED}
    vocabulary = sorted(set().union(*lists.values()))
    inside = ngrams.vectorizer(ngram_range=(1, 3), vocabulary=vocabulary).transform(texts)
    place = {word: number for number, word in enumerate(vocabulary)}
    member = np.zeros((len(vocabulary), len(lists)), dtype=np.float32)
    for column, words in enumerate(lists.values()):
        member[[place[word] for word in words], column] = 1
    values = np.asarray((inside @ member) > 0, dtype=np.float64)
    return dict(zip(lists, values.T, strict=True))


def _marks(texts: list[str]) -> dict[str, Floats]:
    """Whether a text has each mark."""
    patterns = {
        "exclamation": "!",
        "question": r"\?",
        "quotation": r"[\"“”\u2018«»]|(?<!\w)'[^']+'(?!\w)",
        "digits": r"\d",
        "comma": ",",
        "capitals": r"\b[A-Z]{2,}\b",
        "ellipsis": r"\.\.\.|…",
        "brackets": r"[()\[\]]",
        "line break": r"\n",
        "link": r"https?://|www\.",
        "symbol": r"[#@*_~^|\\<>{}=+%$&/]",
        "beyond ASCII": r"[^\x00-\x7f]",
        "several sentences": r"[.!?]\s+\S",
        "unfinished": r"[^.!?\"')\]]\s*$",
        "repeated word": r"(?i)\b(\w+)\s+\1\b",
    }
    compiled = {name: re.compile(source) for name, source in patterns.items()}
    return {name: np.array([one.search(text) is not None for text in texts], float) for name, one in compiled.items()}


def _shapes(texts: list[str]) -> dict[str, Floats]:
    """Numbers of a text."""
    words = [re.findall(r"\w+(?:'\w+)*", text.lower()) for text in texts]
    count = np.array([len(one) for one in words], dtype=np.float64)
    some = np.maximum(count, 1)
    sentences = np.array([max(1, len(re.findall(r"[.!?]+(?:\s|$)", text))) for text in texts], dtype=np.float64)
    letters = np.array([sum(map(len, one)) for one in words], dtype=np.float64)
    syllables = np.array([max(1, len(re.findall("[aeiouy]+", " ".join(one)))) for one in words], dtype=np.float64)
    feelings = sentiment.sentiments(texts)
    return {
        LENGTH: count,
        "sentences": sentences,
        "word length": letters / some,
        "readability": np.clip(206.835 - 1.015 * some / sentences - 84.6 * syllables / some, -100, 200),
        "distinct words": np.array([len(set(one)) for one in words]) / some,
        "sentiment": feelings[:, 0],
        "subjectivity": feelings[:, 1],
    }


LENGTH = "length"


def swap(source: str, target: str, flags: re.RegexFlag = re.NOFLAG) -> Edit:
    """Edit: what the pattern finds is replaced; None where it finds nothing."""
    find = re.compile(source, flags)

    def edit(text: str) -> str | None:
        changed = find.sub(target, text)
        return changed if changed != text and changed.strip() else None

    return edit


def _second_person_out(text: str) -> str | None:
    changed = text
    for source, target in (
        (r"\byou're\b|\byou (are|were)\b", "they are"),
        (r"\b(you|u)\b", "they"),
        (r"\b(your|ur)\b", "their"),
        (r"\byours\b", "theirs"),
    ):
        changed = re.sub(source, target, changed, flags=re.I)
    return _changed(text, changed)


def _changed(text: str, changed: str) -> str | None:
    return changed if changed != text else None


LISTED = {name: entries(words) for name, (_, words) in LISTS.items()}
_OUT: dict[str, Edit] = {
    "second person": _second_person_out,
    "you are": swap(r"\byou're\b|\byou (are|were|sound|look|seem)\b", "they are", re.I),
    "exclamation": swap("!+", "."),
    "question": swap(r"\?+", "."),
    "quotation": swap(r"[\"“”\u2018«»]", ""),
    "digits": swap(r"\d+", "some"),
    "capitals": lambda text: _changed(text, re.sub(r"\b[A-Z]{2,}\b", lambda found: found[0].lower(), text)),
    "insult": ngrams.taking_out(LISTED["insult"]),
    "praise": ngrams.taking_out(LISTED["praise"]),
    "thanks": ngrams.taking_out(LISTED["thanks"]),
    "please": ngrams.taking_out(["please", "kindly"]),
    "hedge": ngrams.taking_out(LISTED["hedge"]),
    "certainty": ngrams.taking_out(LISTED["certainty"]),
    "intensifier": ngrams.taking_out(LISTED["intensifier"]),
}
_IN: dict[str, Edit] = {
    "exclamation": swap(r"[.?]?\s*$", "!"),
    "question": swap(r"[.!]?\s*$", "?"),
    "thanks": lambda text: f"{text.rstrip()} Thank you." if text.strip() else None,
    "please": lambda text: f"{text.rstrip()} Please." if text.strip() else None,
    "apology": lambda text: f"{text.rstrip()} Sorry." if text.strip() else None,
    "capitals": lambda text: text.upper() if text != text.upper() else None,
    "insult": lambda text: f"{text.rstrip()} Idiot." if text.strip() else None,
    "praise": lambda text: f"{text.rstrip()} Wonderful." if text.strip() else None,
}
_MARKED = {
    "exclamation": "has an exclamation mark",
    "question": "has a question mark",
    "quotation": "has a quotation",
    "digits": "has a digit",
    "comma": "has a comma",
    "capitals": "has a word in capitals",
    "ellipsis": "trails off with '...'",
    "brackets": "has brackets",
    "line break": "has a line break",
    "link": "has a link",
    "symbol": "has a symbol such as # or *",
    "beyond ASCII": "has a letter or sign beyond ASCII",
    "several sentences": "has several sentences",
    "unfinished": "ends without a full stop",
    "repeated word": "says a word twice in a row",
}
_GRADED = {
    LENGTH: ("is longer", "words"),
    "sentences": ("has more sentences", "sentences"),
    "word length": ("has longer words", "letters a word"),
    "readability": ("is easier to read", "points of Flesch's formula"),
    "distinct words": ("repeats fewer words", "distinct words a word"),
    "sentiment": ("has a more positive sentiment", "polarity from -1 to 1"),
    "subjectivity": ("is more subjective", "from 0 to 1"),
}
PROPERTIES: dict[str, Property] = {
    **{name: Property(name, wording, "", _OUT.get(name), _IN.get(name)) for name, (wording, _) in LISTS.items()},
    **{name: Property(name, wording, "", _OUT.get(name), _IN.get(name)) for name, wording in _MARKED.items()},
    **{name: Property(name, wording, unit) for name, (wording, unit) in _GRADED.items()},
}
