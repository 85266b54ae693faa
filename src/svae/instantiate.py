"""Configs to objects: the one place that does it, with every key and type checked first."""

import inspect
import logging
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from svae.errors import one_line

__all__ = ["instantiate", "own_packages", "trusted_target"]

#: What a config may name: a config from elsewhere must not be able to run any code it likes.
_TRUSTED = ("svae.", "pytorch_lightning.", "torch.nn.", "torch.optim.")

#: The functions among them: others write files, or load pickles, which are code.
_FUNCTIONS = ("svae.schedules.", "svae.likelihoods.")

#: Makes whatever its arguments name.
_NOT_TRUSTED = ("pytorch_lightning.cli.",)


def instantiate(config: DictConfig, where: str, **more: Any) -> Any:
    """The object that a config describes.

    Arguments:
        config: A node with `_target_`, or a mapping of such nodes.
        where: The name of the node, for messages.
        more: Further arguments of the target.

    Raises:
        ValueError: What a constructor raised; a key that the target does not take, or a value of
            another type than it says; a value that is missing; or a target that is no class of
            `svae`, `pytorch_lightning`, `torch.nn` and `torch.optim`. `SVAE_TRUSTED_TARGETS` adds
            packages, modules and classes of one's own, separated by commas.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _check(plain, where, more)
    try:
        return hydra.utils.instantiate(plain, _convert_="all", **more)
    except InstantiationException as error:
        if error.__cause__ is None:
            raise
        # What the constructor said is what helps; of Hydra's words, the place.
        inside = re.search(r"full_key: (\S+)", str(error))
        place = f"{where}.{inside.group(1)}" if inside else where
        raise ValueError(f"{one_line(error.__cause__)} (in {place})") from error


def _check(node: Any, where: str, more: Mapping[str, Any]) -> None:
    if isinstance(node, list):
        for i, item in enumerate(node):
            _check(item, f"{where}[{i}]", {})
    if not isinstance(node, dict):
        return
    # The node before what is in it: a value that others are interpolated from is named first.
    if "_target_" in node:
        _check_call(node, where, more)
    for key, value in node.items():
        _check(value, f"{where}.{key}", {})


def _check_call(node: dict[str, Any], where: str, more: Mapping[str, Any]) -> None:
    target = trusted_target(node["_target_"], where)
    name = node["_target_"]
    if "_args_" in node:
        raise ValueError(f"{where}._args_: expected arguments by name")
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    for key, value in given.items():
        if key not in parameters and not open_ended:
            raise ValueError(
                f"{where}.{key}: {name} takes no such argument; it takes "
                f"{', '.join(k for k in parameters if k not in more)}"
            )
        if value == "???":
            raise ValueError(f"{where}.{key}: a value is missing")
        _check_type(value, _annotation(target, key), f"{where}.{key}")
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    lacking = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in variable
        if key not in given and key not in more
    ]
    if lacking and not node.get("_partial_"):
        raise ValueError(
            f"{where}: {name} is not given {', '.join(lacking)}; expected a value, or "
            "_partial_: true beside _target_ where svae gives it"
        )


def own_packages(config: Any) -> list[str]:
    """The packages in a config that `SVAE_TRUSTED_TARGETS` has to name."""
    nodes = [config]
    found = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            name = node.get("_target_")
            if isinstance(name, str) and not name.startswith(_TRUSTED):
                found.add(name.partition(".")[0])
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return sorted(found)


def trusted_target(name: Any, where: str) -> Callable[..., Any]:
    """The class or function of that name, if it is one that a config may name."""
    listed = [p.strip() for p in os.environ.get("SVAE_TRUSTED_TARGETS", "").split(",")]
    own = tuple(f"{p}." for p in listed if p)
    itself = name in listed  # a class, and not the package that it is in
    refusal = ValueError(
        f"{where}._target_: {name!r} is no class of svae, pytorch_lightning, torch.nn or "
        "torch.optim; set SVAE_TRUSTED_TARGETS to a package of your own to allow it"
    )
    # To look a name up is to import its module, and that of a command runs it.
    named = isinstance(name, str) and (itself or name.startswith(_TRUSTED + own))
    if not named or "__main__" in name:
        raise refusal
    # What is raised here, Hydra logs before, in several lines.
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    try:
        target = hydra.utils.get_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}._target_: {name!r} {_why_not(name, error)}") from error
    # A name such as svae.run.torch.load begins well and ends elsewhere.
    home = f"{getattr(target, '__module__', '')}."
    of_svae = inspect.isclass(target) and home.startswith(_TRUSTED)
    allowed = of_svae or itself or home.startswith(_FUNCTIONS + own)
    if home.startswith(_NOT_TRUSTED) or not allowed:
        raise refusal
    return target


def _why_not(name: str, error: Exception) -> str:
    """Why a name cannot be looked up: there is no such thing, or its module fails."""
    cause = error.__cause__ or error
    # A module that is not there may be one that a module of that name imports.
    absent = isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}.")
    if absent or isinstance(cause, AttributeError):
        return f"does not exist ({one_line(cause)})"
    return f"cannot be imported ({type(cause).__name__}: {one_line(cause)})"


def _annotation(target: Callable[..., Any], key: str) -> Any:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function).get(key, Any)
    except (NameError, TypeError):  # a library's annotation that only a type checker can read
        return Any


_PLAIN = {int, float, bool, str, types.NoneType}


def _check_type(value: Any, annotation: Any, where: str) -> None:
    """Compare plain values with int, float, bool, str and None; what is no such type is let be."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    accepted = typing.get_args(annotation) if union else (annotation,)
    if isinstance(value, dict):
        return
    if set(accepted) <= _PLAIN:
        fits = type(value) in accepted or (type(value) is int and float in accepted)
    else:
        # Of "a number or a tensor", a word is neither.
        classes = Any not in accepted and all(inspect.isclass(kind) for kind in accepted)
        fits = not (isinstance(value, str) and classes and str not in accepted)
    if not fits:
        names = [getattr(kind, "__name__", str(kind)) for kind in accepted]
        expected = " or ".join("null" if name == "NoneType" else name for name in names)
        raise ValueError(f"{where}: expected {expected}, got {value!r}")
