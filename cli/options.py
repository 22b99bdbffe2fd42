"""Options that several commands share, each a small decorator."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]
_UNITS = {"s": 1, "m": 60, "h": 3600}
PREPROCESS = ("preprocess_file", "resize", "crop", "scale", "mean", "std", "layout", "color")


class FiniteFloat(click.FloatRange):
    """A number in a range; NaN and infinity, which pass click's own comparisons, are none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number", param, ctx)
        return number


class Duration(click.ParamType):
    """``2h``, ``90m`` or ``600s`` (or plain seconds), in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
        try:
            seconds = float(number) * _UNITS[unit]
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is no duration; give 2h, 90m or 600s", param, ctx)
        return seconds


def _check_json(ctx: click.Context, param: click.Parameter, file: str | None) -> str | None:
    """Refuse a place that cannot be written before the work whose result would go there."""
    if file is None or file == "-":
        return file
    path = Path(file)
    reason = None
    if path.is_dir():
        reason = "it is a directory"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        reason = f"{path.parent} is not writable"
    else:
        from ..artifact.bundle import bundle_around

        if bundle := bundle_around(path):
            reason = f"it lies in the bundle {bundle}, which stays as it is"
    if reason:
        raise click.BadParameter(f"{file} cannot be written: {reason}", ctx, param)
    return file


def json_option(command: Command) -> Command:
    return click.option(
        "--json",
        "json_file",
        metavar="FILE",
        callback=_check_json,
        help="Write the result as JSON (docs/result-schema.md); - for stdout.",
    )(command)


def sample_options(command: Command) -> Command:
    """What engines are calibrated and judged on, besides --data, and how an image becomes an input."""
    for option in (
        preprocess_options,
        click.option(
            "--classes",
            metavar="FILE",
            help="Class names, a line each, in the order of the outputs.",
        ),
        click.option(
            "--task", metavar="FILE.py:NAME", help="Any task, with its own metric; runs that file."
        ),
        click.option(
            "--calibration-data",
            metavar="SOURCE",
            help="Calibrate on this instead of a part of --data.",
        ),
    ):
        command = option(command)
    return command


def bad_sample_option(command: Command) -> Command:
    return click.option(
        "--on-bad-sample",
        type=click.Choice(["error", "skip"]),
        default=None,
        help="Unreadable, NaN … samples [error].",
    )(command)


def engine_options(command: Command) -> Command:
    for option in (
        click.option(
            "--batch", type=click.IntRange(min=1), default=None, help="Static batch size [1]."
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), default=None, help="CPU threads [all]."
        ),
    ):
        command = option(command)
    return command


def preprocess_options(command: Command) -> Command:
    """How an image becomes the network's input: (x · scale − mean) / std after resize and crop."""
    for option in (
        click.option(
            "--preprocess",
            "preprocess_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="All of these, --resize to --layout, as JSON or YAML.",
        ),
        click.option(
            "--layout", type=click.Choice(["NCHW", "NHWC"]), help="Axes of the input [NCHW]."
        ),
        click.option(
            "--color", type=click.Choice(["RGB", "BGR", "L"]), help="Channel order [RGB]."
        ),
        click.option("--std", metavar="S[,S,S]", help="Divided by, after --mean."),
        click.option("--mean", metavar="M[,M,M]", help="Subtracted, after --scale."),
        click.option("--scale", type=float, help="Pixels are multiplied by it [1/255]."),
        click.option("--crop", metavar="N|HxW", help="Centre crop."),
        click.option("--resize", metavar="N|HxW", help="Short side, or both sides."),
    ):
        command = option(command)
    return command


def take_preprocess(flags: dict[str, Any]) -> dict[str, Any] | None:
    """`preprocess_values` of what `preprocess_options` gave a command, which goes out of its `flags`."""
    return preprocess_values(**{option: flags.pop(option) for option in PREPROCESS})


def preprocess_values(
    preprocess_file: Path | None,
    resize: str | None,
    crop: str | None,
    scale: float | None,
    mean: str | None,
    std: str | None,
    layout: str | None,
    color: str | None,
) -> dict[str, Any] | None:
    """The declared preprocessing as plain values, or None when nothing was declared."""
    from ..errors import InputError

    flags = {
        "resize": _size(resize, "--resize"),
        "crop": _size(crop, "--crop"),
        "scale": scale,
        "mean": _numbers(mean, "--mean"),
        "std": _numbers(std, "--std"),
        "layout": layout,
        "color": color,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if preprocess_file is None:
        return given or None
    if given:
        raise InputError(f"--preprocess and --{next(iter(given))} both say how; give one of them")
    from ..artifact.preprocess import ImagePreprocess

    return ImagePreprocess.from_file(preprocess_file).model_dump(mode="json")


def _size(text: str | None, flag: str) -> int | list[int] | None:
    if text is None:
        return None
    from ..errors import InputError

    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise InputError(f"{flag} {text!r} is no size; give 224 or 224x320 (height x width)")
    return sides[0] if len(sides) == 1 else sides


def _numbers(text: str | None, flag: str) -> list[float] | None:
    if text is None:
        return None
    from ..errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as e:
        raise InputError(
            f"{flag} {text!r}: give numbers separated by commas, as in 0.485,0.456,0.406"
        ) from e


def write_json(result: Any, json_file: str | None) -> None:
    """Write a `ResultTable`, or plain values, where `--json` says."""
    if json_file is None:
        return
    if isinstance(result, (dict, list)):
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        from ..report.write import to_json

        text = to_json(result)
    if json_file == "-":
        click.echo(text)
        return
    from ..artifact.atomic_file import write_text

    write_text(Path(json_file), text)
