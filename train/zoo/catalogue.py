"""The zoo by name: which function builds a network, and what it takes. Imports no torch itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from ...errors import ModelError, nearest


@dataclass(frozen=True)
class ZooEntry:
    """One name.

    Attributes:
        file, function: in this folder.
        takes: ``image`` (input ``x`` [N, channels, size, size]) or ``text`` (``tokens`` [N, T]).
        size: the side of the images that it is made for, in pixels.
        given: arguments that the name stands for.
    """

    file: str
    function: str
    takes: Literal["image", "text"] = "image"
    size: int = 32
    given: dict[str, Any] = field(default_factory=dict)


ZOO = {
    "cnn": ZooEntry("cnn", "cnn", size=28),
    "resnet20": ZooEntry("resnet", "resnet", given={"depth": 20}),
    "resnet32": ZooEntry("resnet", "resnet", given={"depth": 32}),
    "resnet44": ZooEntry("resnet", "resnet", given={"depth": 44}),
    "resnet56": ZooEntry("resnet", "resnet", given={"depth": 56}),
    "mobilenetv2": ZooEntry("mobilenetv2", "mobilenetv2", size=224),
    "rnn": ZooEntry("rnn", "rnn", takes="text"),
    "transformer": ZooEntry("transformer", "transformer", takes="text"),
}


def zoo_entry(name: str) -> ZooEntry:
    """The entry of a name.

    Raises:
        ModelError: there is none; the nearest is told.
    """
    if name not in ZOO:
        raise ModelError(f"zoo:{name} is not in the zoo, {nearest(name, ZOO)}")
    return ZOO[name]


def build_zoo(name: str, options: dict[str, Any] | None = None) -> Any:
    """A network of the zoo with fresh weights (drawn from torch's current random state).

    Args:
        options: keyword arguments of its function (width, blocks, classes, channels …).

    Raises:
        ModelError: an unknown name or option, or a value of the wrong type.
        InputError: the function refuses a value.
    """
    entry = zoo_entry(name)
    function = getattr(import_module(f".{entry.file}", __package__), entry.function)
    known = zoo_options(name)
    options = options or {}
    for option, value in options.items():
        if option not in known:
            raise ModelError(f"{name} has no option {option!r}, {nearest(option, known)}")
        wanted = type(known[option])
        fits = isinstance(value, wanted) or (wanted is float and type(value) is int)
        if known[option] is not None and not (fits and (wanted is bool) == (type(value) is bool)):
            raise ModelError(f"{name}: {option} {value!r} is no {wanted.__name__}")
    return function(**{**entry.given, **options})


def zoo_options(name: str) -> dict[str, Any]:
    """What a network's function takes beside what its name says, with the defaults."""
    entry = zoo_entry(name)
    function = getattr(import_module(f".{entry.file}", __package__), entry.function)
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in entry.given
    }
