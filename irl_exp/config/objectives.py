"""What a sweeper may optimise: metrics of select, the prompts that are there to choose by."""

from __future__ import annotations

import difflib

SELECT_LOSS = "irl/select_loss"
EXPERT_FIRST = "irl/select_expert_first"
OBJECTIVES = (SELECT_LOSS, EXPERT_FIRST)


def of_select(name: str | None) -> str | None:
    """The name of an objective.

    Raises:
        ValueError: there is none of that name; says why a metric of test is none.
    """
    if name is None or name in OBJECTIVES:
        return name
    close = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ValueError(
        f"{hint}choose one of {', '.join(OBJECTIVES)}. The metrics of metrics.json are of test prompts: whoever "
        "chooses by them has nothing left to judge the choice by"
    )
