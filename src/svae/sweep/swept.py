"""What was swept: the settings that tell the runs of a sweep apart, as few as possible."""

from collections.abc import Iterable, Sequence

from svae.run import DECIDING, UNTOLD
from svae.sweep.runs import Run, Value, decides, within

__all__ = ["is_seed", "kinds", "numeric", "ordered", "swept", "varies"]

#: Their choice is not the value of one section.
ACROSS = ("experiment",)
#: What normalises images, and a likelihood's first standard deviation, are found from the images
#: trained on, and which these are is up to the seed.
FOUND = tuple(f"dataset.{name}" for name in ("offset", "scale", "mean", "std"))
FOUND_BY_AUTO = "model.likelihood.std"
#: Of the data set and the likelihood, this changes no bound.
SAME_IMAGES = ("dataset.batch_size",)


def swept(runs: Sequence[Run]) -> list[str]:
    """The names of what was swept, of which all other differences follow.

    Those that the command lines name come first and in their order; then, where runs differ that
    these do not tell apart, choices of config groups and last single settings. The name of a
    group stands for its choice.
    """
    found = [name for name in _overridden(runs) if varies(runs, name)]
    runs = _decided(runs)
    return _with_others(runs, (*_chosen(runs), *_settings(runs)), found)


def kinds(runs: Sequence[Run]) -> list[str]:
    """The names of what makes `val/elbo` of one run not compare with that of another.

    These are settings of the images and of their likelihood.
    """
    runs = _decided(runs)
    groups = [name for name in _chosen(runs) if name in ("dataset", "model/likelihood")]
    settings = [
        name
        for name in _settings(runs)
        if (within(name, "dataset") or within(name, "model.likelihood"))
        and not (is_seed(name) or name in SAME_IMAGES or _is_found(runs, name))
    ]
    return _with_others(runs, (*groups, *settings), [])


def varies(runs: Iterable[Run], name: str) -> bool:
    """Whether runs differ in a setting or a choice; what is not decided yet differs from none."""
    told = [(run.value(name), run.resolved and name not in UNTOLD) for run in runs]
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
    """What command lines name. Which trainer is the machine's, unless all of them name one."""
    names = dict.fromkeys(name for run in runs for name in run.overrides)
    return [
        name
        for name in names
        if name != "logger" and (name != "trainer" or all(name in run.overrides for run in runs))
    ]


def _decided(runs: Sequence[Run]) -> list[Run]:
    """Those with all settings: what a run has not decided yet would differ from all others."""
    return [run for run in runs if run.resolved] or list(runs)


def _with_others(runs: Sequence[Run], names: Iterable[str], found: Sequence[str]) -> list[str]:
    """What was found and, in their order, those names that it does not explain.

    Of a seed follow its copies and what is found from the images that it draws, and nothing else:
    other settings of other seeds would be taken for repetitions.
    """
    found = list(found)
    for name in names:
        by_seed = is_seed(name) or _is_found(runs, name)
        known = [other for other in found if by_seed or not is_seed(other)]
        if varies(runs, name) and not _follows(runs, name, known):
            found.append(name)
    return found


def _is_found(runs: Sequence[Run], name: str) -> bool:
    """Whether a setting is what the images of a seed make it, where nobody set it."""
    auto = all(run.choices.get("model/likelihood") == "auto" for run in runs)
    return name in FOUND or (name == FOUND_BY_AUTO and auto)


def _chosen(runs: Sequence[Run]) -> list[str]:
    if not all(run.choices for run in runs):  # of some, nothing is known
        return []
    names = dict.fromkeys(name for run in runs for name in run.choices)
    known = [name for name in names if name.partition("/")[0] in (*ACROSS, *DECIDING)]
    return sorted(known, key=lambda name: (name not in ACROSS, name.count("/")))


def _settings(runs: Sequence[Run]) -> list[str]:
    """Those that decide what a run computes, and all that command lines name, alone or as a part.

    Those come first from which others may follow.
    """
    names = dict.fromkeys(name for run in runs for name in run.config)
    # Of a choice that all share, such as trainer=gpu, the parts may differ by the machine.
    named = {
        name.replace("/", ".")
        for name in {name for run in runs for name in run.overrides}
        if varies(runs, name) or not any(name in run.choices for run in runs)
    }
    told = [n for n in names if decides(n) or any(within(n, section) for section in named)]
    told.sort(key=lambda name: (name.count("."), not name.endswith("._target_")))
    return sorted(told, key=lambda name: (_is_found(runs, name), is_seed(name)))


def _follows(runs: Sequence[Run], name: str, known: Sequence[str]) -> bool:
    """Whether a value is the same in all runs that are alike in what is known."""
    values: dict[tuple[Value | None, ...], Value | None] = {}
    for run in runs:
        place = tuple(run.value(other) for other in known)
        if values.setdefault(place, run.value(name)) != run.value(name):
            return False
    return True
