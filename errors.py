"""Every error that edgeml raises on purpose.

::

    EdgemlError            exit 1   something failed that the user did not cause (disk full, a library)
    ├── InputError         exit 2   the user can mend it: one line says what was wrong, where, what to do
    │   ├── ModelError              a model file, factory or its weights
    │   ├── DataError               a data source, a sample, a split
    │   ├── TaskError               a task file, its score or its samples
    │   ├── BundleError             a bundle: damaged, doctored, too new, not trusted
    │   ├── MissingPart             an optional library or a capability this machine lacks
    │   ├── OutOfReach              a budget that no pruning of the network can meet
    │   └── Unreachable             a device that cannot be logged into: address, host key, permission
    ├── DiskFull           exit 1   no space left; the same command goes on when there is
    ├── BuildError         exit 1   a route or a runtime could not build one engine (a row in the table)
    ├── DeviceError        exit 1   what failed on a device: host, stage, cause
    ├── ParityError        exit 1   an export does not compute what its source computes
    └── BudgetMissed       exit 3   the work is done, a part of the budget does not hold

The command line catches `EdgemlError` once, in its root group. Messages are one line: what was
wrong, the value seen, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import takewhile


class EdgemlError(Exception):
    """Something failed; the message says what in one line."""

    exit_code = 1


class InputError(EdgemlError):
    """Bad input: the user can mend it."""

    exit_code = 2


class ModelError(InputError):
    """A model file, a factory or its weights cannot be used."""


class DataError(InputError):
    """A data source, one of its samples or its splits cannot be used."""


class TaskError(InputError):
    """A task file breaks the task's contract."""


class BundleError(InputError):
    """A bundle is damaged, doctored, too new, or names code that was not trusted."""


class MissingPart(InputError):
    """A library or a capability that this machine lacks."""


class OutOfReach(InputError):
    """By the latency table no pruning of the network meets the budget.

    Attributes:
        least: the lowest p50 that it thinks possible, as a share of plain INT8's; None where the
            budget is not one of time.
    """

    def __init__(self, message: str, least: float | None = None) -> None:
        super().__init__(message)
        self.least = least


class Unreachable(InputError):
    """A device cannot be logged into."""


class DiskFull(EdgemlError):
    """No space is left, or no quota."""


class BuildError(EdgemlError):
    """A route or a runtime could not build this engine."""


class DeviceError(EdgemlError):
    """A stage failed on a device, or the link to it was lost."""


class ParityError(EdgemlError):
    """Two forms of a model compute different outputs."""


class BudgetMissed(EdgemlError):
    """The result is there, but a part of the budget does not hold."""

    exit_code = 3


# Lines in which OpenVINO tells where in its C++ source it was, before it tells what is wrong.
_CPP_PLACES = ("Check '", "Exception from src/", "FrontEnd API failed", "Model wasn't fully conv")


def one_line(error: BaseException, limit: int = 300) -> str:
    """The first meaningful line of any exception's text, cut at `limit` characters.

    >>> one_line(ValueError("bad\\n  detail"))
    'bad'
    >>> one_line(RuntimeError("Exception from src/core.cpp:84:\\nUnable to read the model"))
    'Unable to read the model'
    >>> one_line(KeyError())
    'KeyError'
    >>> one_line(FileNotFoundError(2, "No such file or directory", "w.onnx"))
    'No such file or directory: w.onnx'
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("-- No conversion rule")]
    told += [line for line in lines if not line.startswith(_CPP_PLACES)] + lines
    text = told[0].lstrip("- ") if told else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known word, or all of them.

    >>> nearest("opnvino", ["openvino", "onnxruntime"])
    'did you mean openvino?'
    >>> nearest("resnet2", ["resnet20", "resnet32"])
    'did you mean resnet20?'
    >>> nearest("xyz", ["b", "a"])
    'known: a, b'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if not close:
        return f"known: {', '.join(known)}"

    def likeness(other: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, other, word).ratio()
        same = takewhile(lambda pair: pair[0] == pair[1], zip(other, word))
        return ratio, len(list(same))  # of two alike: the one that begins alike

    return f"did you mean {max(close, key=likeness)}?"
