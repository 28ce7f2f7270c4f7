"""Several launches as one study: cells that tell their runs apart, each job once, and what differs between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from irl_exp.analysis import study
from irl_exp.analysis.study import Run, Study, StudyError
from irl_exp.report.cells import cell_of, overrides_of

MOST_KEYS = 3
"""So many keys of the config may be in the name of a cell; where more differ it is named by its launch."""
MOST_TOLD = 12
"""So many differences between launches are told one by one."""

Signature = tuple[tuple[str, str], ...]
"""Of a run: each key of its config that is no seed, with its value."""


def read(paths: Sequence[Path]) -> Study:
    """Read several launches (or newest launches of studies) as one study.

    Runs have new numbers, in the order of the paths. The folder of the study, in which its report is written, is beside
    the newest launch and named after all of them.

    Raises:
        StudyError: a launch has no run with a result, or is named twice.
    """
    launches = [study.read(path) for path in paths]
    folders = [launch.folder for launch in launches]
    if twice := [folder for folder, count in Counter(folders).items() if count > 1]:
        raise StudyError(f"{twice[0]} is named twice: name launches that differ, or one alone.")
    told = tags(folders)
    kept = once(launches)
    repeated = sum(len(_every(launch)) for launch in launches) - sum(map(len, kept))
    runs = [replace(run, number=number) for number, run in enumerate(named(kept, told))]
    known = {run.name for launch in launches for run in _every(launch)}
    again = f"{repeated} run(s) are in more than one of these launches, with the same results: they count once."
    notes = [f"Launches: {' | '.join(told)}.", *differences(launches), *([again] if repeated else [])]
    notes += dict.fromkeys(note for launch in launches for note in launch.notes)
    questions = {launch.question for launch in launches}
    return study.assemble(
        max(folders, key=lambda folder: folder.name).with_name("+".join(told)),
        runs,
        [item for launch in launches for item in launch.lost if item.name not in known],
        notes,
        command="\n".join(dict.fromkeys(launch.command for launch in launches if launch.command)),
        question=questions.pop() if len(questions) == 1 else "",
        launches=tuple(folders),
    )


def _every(launch: Study) -> tuple[Run, ...]:
    return launch.runs + launch.controls


def tags(folders: Sequence[Path]) -> list[str]:
    """What launches are called: by their time, and by their study where there are several.

    >>> tags([Path("multirun/a/1"), Path("multirun/a/2")]), tags([Path("multirun/a/1"), Path("multirun/b/1")])
    (['1', '2'], ['a-1', 'b-1'])
    """
    if len({folder.parent for folder in folders}) == 1:
        return [folder.name for folder in folders]
    return [f"{folder.parent.name}-{folder.name}" for folder in folders]


# ------------------------------------------------------------------------------------------------------ each job once


def once(launches: Sequence[Study]) -> list[list[Run]]:
    """The runs of each launch without those that another launch has too: the first one stays, or the longer one."""
    every = [(place, run) for place, launch in enumerate(launches) for run in _every(launch)]
    having: dict[object, list[int]] = {}
    for number, (_, run) in enumerate(every):
        for item in _stages(run).items():
            having.setdefault(item, []).append(number)
    kept: list[list[Run]] = [[] for _ in launches]
    for mine, (place, run) in enumerate(every):
        others = [number for number in having.get(_last(run), []) if every[number][0] != place]
        if not any(_holds(every[number][1], run, before=number < mine) for number in others):
            kept[place].append(run)
    return kept


def _stages(run: Run) -> dict[str, object]:
    return {key: value for key, value in run.config.items() if key.startswith("artifacts.")}


def _last(run: Run) -> tuple[str, object] | None:
    """The last artifact of a run that does not depend on how far it went."""
    found = [item for item in _stages(run).items() if item[0] != "artifacts.evaluate"]
    return found[-1] if found else None


def _holds(one: Run, other: Run, *, before: bool) -> bool:
    """Whether a run has all results of another one: the same, if it comes `before`, or more, if it went further."""
    mine, its = _stages(one), _stages(other)
    if one.config.get("until") == other.config.get("until"):
        return before and mine == its
    its.pop("artifacts.evaluate", None)  # that of a longer run is of more policies
    return len(mine) > len(its) + 1 and its.items() <= mine.items()


# -------------------------------------------------------------------------------------------------------- their cells


def named(launches: Sequence[Sequence[Run]], told: Sequence[str]) -> list[Run]:
    """The runs of all launches by names whose cells differ where their configs do, and are one where they do not."""
    cells = [(place, cell_of(run.name)) for place, runs in enumerate(launches) for run in runs]
    runs = [run for launch in launches for run in launch]
    signatures: dict[tuple[int, str], Signature] = {}
    for at, run in zip(cells, runs, strict=True):
        signatures.setdefault(at, _signature(run))
    names = _names(signatures, told)
    found = [_renamed(run, names[at]) for at, run in zip(cells, runs, strict=True)]
    counts = Counter(run.name for run in found)
    torn = {
        cell_of(name) for name, count in counts.items() if count > 1
    }  # one seed, two results: another state of code
    return [
        _renamed(run, f"{cell_of(run.name)},launch={told[place]}") if cell_of(run.name) in torn else run
        for (place, _), run in zip(cells, found, strict=True)
    ]


def _signature(run: Run) -> Signature:
    return tuple(sorted((key, str(value)) for key, value in run.config.items() if study.compared(key)))


def _names(signatures: Mapping[tuple[int, str], Signature], told: Sequence[str]) -> dict[tuple[int, str], str]:
    """A name for each cell of each launch: that of an equal one before it, else its own, told apart if it has to be."""
    first: dict[Signature, str] = {}
    for (_, cell), signature in signatures.items():
        first.setdefault(signature, cell)
    shared = {cell: [own for own, name in first.items() if name == cell] for cell in first.values()}
    names = {}
    for (place, cell), signature in signatures.items():
        alike = shared[first[signature]]
        apart = _apart(signature, alike) or f"launch={told[place]}"
        names[place, cell] = first[signature] if len(alike) == 1 else f"{first[signature]},{apart}"
    return names


def _apart(signature: Signature, alike: Sequence[Signature]) -> str:
    """What tells one config from others whose overrides are the same, if that is short."""
    keys = [key for key, value in signature if any(dict(other).get(key) != value for other in alike)]
    values = dict(signature)
    return ",".join(f"{key}={values[key]}" for key in keys) if 0 < len(keys) <= MOST_KEYS else ""


def _renamed(run: Run, cell: str) -> Run:
    """A run by the name of a cell and its own seeds."""
    own = set(overrides_of(cell_of(run.name)))
    seeds = [part for part in overrides_of(run.name) if part not in own]
    cells = [part for part in overrides_of(cell) if part != "default"]
    return replace(run, name=",".join([*cells, *seeds]), cell=",".join(cells) or "default")


# -------------------------------------------------------------------------------------------------- what differs


def differences(launches: Sequence[Study]) -> Iterator[str]:
    """The keys of the config whose values are others in one launch than in another, with the values."""
    keys = dict.fromkeys(key for launch in launches for run in launch.runs for key in run.config)
    values = {
        key: [_values(launch, key) for launch in launches] for key in keys if study.compared(key) or _is_seed(key)
    }
    unlike = {key: found for key, found in values.items() if len(set(found)) > 1}
    shown = [f"{key}: {' | '.join(found)}" for key, found in list(unlike.items())[:MOST_TOLD]]
    more = f"; and {len(unlike) - MOST_TOLD} more keys" if len(unlike) > MOST_TOLD else ""
    yield f"They differ in {'; '.join(shown)}{more}." if shown else "Their configs do not differ."


def _is_seed(key: str) -> bool:
    return key.split(".")[-1] == "seed"


def _values(launch: Study, key: str) -> str:
    """The values of a key in the runs of a launch that have it, as text; many seeds by their ends."""
    found = list(dict.fromkeys(str(run.config[key]) for run in launch.runs if key in run.config))
    if _is_seed(key) and len(found) > MOST_KEYS and all(map(str.isdigit, found)):
        seeds = sorted(map(int, found))
        return f"{len(found)} from {seeds[0]} to {seeds[-1]}"
    return ", ".join(found) or "not there"
