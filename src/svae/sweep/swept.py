"""What was swept: the settings that tell the runs of a sweep apart, as few as possible."""

from collections.abc import Iterable, Sequence

from svae.sweep.runs import SECTIONS, Run, Value

__all__ = ["is_seed", "numeric", "ordered", "swept", "varies"]

#: Named on a command line, these tell where a run lies and not what it is.
PLACES = ("output_dir", "ckpt_path", "hydra")
#: Their choice is not the value of one section.
ACROSS = ("experiment",)


def swept(runs: Sequence[Run]) -> list[str]:
    """The names of what was swept, of which all other differences follow.

    Those that the command lines name come first and in their order; then, where runs differ that
    these do not tell apart, choices of config groups and last single settings. The name of a
    group stands for its choice.
    """
    found = [name for name in _overridden(runs) if varies(runs, name)]
    # Settings that a run has not decided yet would differ from those of all others.
    runs = [run for run in runs if run.resolved] or list(runs)
    for name in (*_chosen(runs), *_settings(runs)):
        if varies(runs, name) and not _follows(runs, name, found):
            found.append(name)
    return found


def varies(runs: Iterable[Run], name: str) -> bool:
    """Whether runs differ in a setting or a choice; what is not decided yet differs from none."""
    told = [(run.value(name), run.resolved) for run in runs]
    return len({value for value, resolved in told if resolved or value is not None}) > 1


def is_seed(name: str) -> bool:
    """Whether a setting tells repetitions from each other."""
    return name.rpartition(".")[2] == "seed"


def numeric(runs: Iterable[Run], name: str) -> bool:
    """Whether all values of a setting are numbers."""
    return all(isinstance(run.value(name), int | float) for run in runs)


def ordered(runs: Sequence[Run], name: str) -> list[Value | None]:
    """The values of a setting: numbers by their size, others in the order of the runs."""
    values = list(dict.fromkeys(run.value(name) for run in runs))
    return sorted(values) if numeric(runs, name) else values  # type: ignore[type-var]


def _overridden(runs: Sequence[Run]) -> list[str]:
    """What command lines name. Of the machine's settings, those that all of them name."""
    names = dict.fromkeys(name for run in runs for name in run.overrides)
    return [
        name
        for name in names
        if name.replace("/", ".").partition(".")[0] not in PLACES
        and (_decides(runs, name) or all(name in run.overrides for run in runs))
    ]


def _decides(runs: Iterable[Run], name: str) -> bool:
    """Whether a name is one of those that decide what a run computes."""
    section = name.replace("/", ".").partition(".")[0]
    if section == "trainer":
        return any(name in run.config for run in runs)
    return name in ACROSS or section in SECTIONS


def _chosen(runs: Sequence[Run]) -> list[str]:
    if not all(run.choices for run in runs):  # of some, nothing is known
        return []
    names = dict.fromkeys(name for run in runs for name in run.choices)
    known = [name for name in names if _decides(runs, name)]
    return sorted(known, key=lambda name: (name not in ACROSS, name.count("/")))


def _settings(runs: Sequence[Run]) -> list[str]:
    """Those first from which others may follow; a seed tells runs apart that differ otherwise."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    return sorted(
        names,
        key=lambda name: (is_seed(name), name.count("."), not name.endswith("._target_")),
    )


def _follows(runs: Sequence[Run], name: str, known: Sequence[str]) -> bool:
    """Whether a value is the same in all runs that are alike in what is known."""
    values: dict[tuple[Value | None, ...], Value | None] = {}
    for run in runs:
        place = tuple(run.value(other) for other in known)
        if values.setdefault(place, run.value(name)) != run.value(name):
            return False
    return True
