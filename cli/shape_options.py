"""``--min-shape``, ``--opt-shape``, ``--max-shape``: the shapes an engine is built for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

Command = Callable[..., Any]


def shape_options(command: Command) -> Command:
    for word, what in (("max", "Largest"), ("opt", "Usual"), ("min", "Smallest")):
        command = click.option(
            f"--{word}-shape",
            f"{word}_shapes",
            multiple=True,
            metavar="NAME:1x3x224x224",
            help=f"{what} shape of an input with open axes.",
        )(command)
    return command


def parse_shapes(texts: Sequence[str], flag: str) -> dict[str, tuple[int, ...]]:
    """``NAME:1x3x224x224`` words as shapes by input name; the name may hold colons.

    >>> parse_shapes(["x:1x3", "in:0:4"], "--opt-shape")
    {'x': (1, 3), 'in:0': (4,)}
    """
    from ..errors import InputError

    shapes = {}
    for text in texts:
        name, _, sides = text.rpartition(":")
        try:
            shape = tuple(int(side) for side in sides.lower().split("x"))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise InputError(f"{flag} {text!r} is no shape; give NAME:1x3x224x224")
        shapes[name] = shape
    return shapes
