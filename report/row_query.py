"""A condition over a row's columns, as in ``latency_p50_ms <= 0.2 and drop_points < 1``.

The text is read by Python's own parser and never run: of its tree only comparisons of a column with
a number or a text, ``and``, ``or``, ``not`` and parentheses are taken; all else is refused with its place.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..artifact.result_row import EngineRow
from ..artifact.row_text import significant
from ..errors import InputError, nearest, one_line

EXAMPLE = "as in --pick 'latency_p50_ms <= 0.2 and drop_points < 1'"
LONGEST = 2000
COMPARES = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
OPPOSITE = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
FLIPPED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
# Added to a distance by what was not measured or is another text: farther than any number.
FAR = 1e6


@dataclass(frozen=True)
class Test:
    """One comparison: a column with a value."""

    column: str
    op: type
    value: Any

    def holds(self, row: Mapping[str, Any]) -> bool:
        """False as well where the row has no such value: what was not measured proves nothing."""
        found = row.get(self.column)
        return found is not None and COMPARES[self.op][1](found, self.value)

    def distance(self, row: Mapping[str, Any]) -> float:
        """0 where it holds; else by how much of the wanted number it is missed."""
        if self.holds(row):
            return 0.0
        found = row.get(self.column)
        if not _is_number(found) or not math.isfinite(found) or not math.isfinite(self.value):
            return FAR
        scale = abs(self.value) or abs(found) or 1.0
        # What must be smaller or larger than the very value it has is not at distance 0.
        return max(abs(found - self.value) / scale, 1e-12)

    def told(self, row: Mapping[str, Any]) -> str:
        found = row.get(self.column)
        have = significant(found, 6) if _is_number(found) else found
        said = "not measured" if found is None else have
        return f"{self.column} {said} (wanted {COMPARES[self.op][0]} {self.value})"


@dataclass(frozen=True)
class Join:
    """Several conditions of which all, or one at least, must hold."""

    all: bool
    parts: tuple[Test | Join, ...]

    def holds(self, row: Mapping[str, Any]) -> bool:
        held = (part.holds(row) for part in self.parts)
        return all(held) if self.all else any(held)

    def distance(self, row: Mapping[str, Any]) -> float:
        found = [part.distance(row) for part in self.parts]
        return sum(found) if self.all else min(found)


@dataclass(frozen=True)
class Query:
    """A condition that was read.

    Attributes:
        text: as it was given.
        condition: has ``holds(row)`` and ``distance(row)``, over `columns_of` a row.
    """

    text: str
    condition: Test | Join

    def tests(self) -> list[Test]:
        """Every comparison in it, from left to right."""
        found: list[Test] = []

        def walk(part: Test | Join) -> None:
            if isinstance(part, Test):
                found.append(part)
            else:
                for inner in part.parts:
                    walk(inner)

        walk(self.condition)
        return found

    def missed_by(self, row: Mapping[str, Any]) -> str:
        """The comparisons that do not hold of a row, in words."""
        return ", ".join(test.told(row) for test in self.tests() if not test.holds(row))


def columns_of(row: EngineRow) -> dict[str, Any]:
    """A row's columns by their names in the JSON.

    Of a measurement the name alone is its value, and ``NAME.low``, ``.high``, ``.n``, ``.how`` are its
    parts. A metric is ``metrics.NAME`` and, where no other column is called so, ``NAME``.

    >>> row = EngineRow(id="a", runtime="openvino", precision="int8", size_bytes=1000)
    >>> columns_of(row)["size_bytes"]
    1000
    """
    found: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        if isinstance(value, dict):
            if "value" in value and "how" in value:
                found[name] = value["value"]
            for key, inner in value.items():
                put(f"{name}.{key}", inner)
        elif not isinstance(value, list):
            found[name] = value

    for name, value in row.model_dump(mode="json").items():
        put(name, value)
    for name in row.metrics:
        found.setdefault(name, found[f"metrics.{name}"])
    return found


def read_query(text: str, rows: Sequence[Mapping[str, Any]]) -> Query:
    """A condition, checked against the columns that the rows have.

    Args:
        rows: `columns_of` each row.

    Raises:
        InputError: it does not parse, names a column that no row has, or compares a number with a
            text; the place is told.
    """
    line = " ".join(text.split())
    if not line:
        raise InputError(f"--pick is empty; {EXAMPLE}")
    if len(line) > LONGEST:
        raise InputError(f"--pick is longer than {LONGEST} characters; {EXAMPLE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(line, mode="eval").body
    except SyntaxError as e:
        # At the end of the text the parser gives no place, or one behind it.
        place = e.offset - 1 if e.offset else len(line)
        raise _refused(line, place, e.msg or "it does not parse") from e
    except (ValueError, RecursionError, MemoryError) as e:
        raise InputError(f"--pick {line[:60]!r} does not parse: {one_line(e)}; {EXAMPLE}") from e
    reader = _Reader(line, rows)
    try:
        return Query(line, reader.condition(tree, wanted=True))
    except RecursionError as e:
        raise InputError(f"--pick {line[:60]!r} is nested too deeply; {EXAMPLE}") from e


class _Reader:
    """From the parser's tree to conditions."""

    def __init__(self, line: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.line = line
        self.kinds: dict[str, set[str]] = {}
        for row in rows:
            for name, value in row.items():
                kinds = self.kinds.setdefault(name, set())
                if value is not None:
                    kinds.add(_kind(value))

    def condition(self, node: ast.expr, wanted: bool) -> Test | Join:
        """`wanted` is False below a ``not``, which turns every comparison around."""
        if isinstance(node, ast.BoolOp):
            parts = tuple(self.condition(value, wanted) for value in node.values)
            return Join(isinstance(node.op, ast.And) == wanted, parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.condition(node.operand, not wanted)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            tests = tuple(
                self.test(sides[i], op, sides[i + 1], node, wanted) for i, op in enumerate(node.ops)
            )
            return tests[0] if len(tests) == 1 else Join(wanted, tests)
        name = self.name(node)
        if name is not None:
            self.check(name, True, node)
            return Test(name, ast.Eq, wanted)
        raise self.at(node, "a comparison is wanted here")

    def test(
        self, left: ast.expr, op: ast.cmpop, right: ast.expr, node: ast.expr, wanted: bool
    ) -> Test:
        kind = type(op)
        if kind not in COMPARES:
            raise self.at(node, "only < <= > >= == != compare")
        name = self.name(left)
        other = right
        if name is None:
            name, other, kind = self.name(right), left, FLIPPED.get(kind, kind)
            if name is None:
                raise self.at(left, "one side must be a column")
        value = self.value(other)
        self.check(name, value, node)
        if isinstance(value, (str, bool)) and kind not in (ast.Eq, ast.NotEq):
            raise self.at(other, "a text or true/false is compared with == or != alone")
        return Test(name, kind if wanted else OPPOSITE[kind], value)

    def name(self, node: ast.expr) -> str | None:
        """``a``, ``a.b`` or ``a['b']`` as a column's name; None where it is something else."""
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            before = self.name(node.value)
            return None if before is None else f"{before}.{node.attr}"
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            before = self.name(node.value)
            return None if before is None else f"{before}.{node.slice.value}"
        return None

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            inner = self.value(node.operand)
            if _is_number(inner):
                return -inner if isinstance(node.op, ast.USub) else inner
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
            return node.value
        elif (name := self.name(node)) is not None:
            known = "two columns are not compared" if name in self.kinds else "a text wants quotes"
            raise self.at(node, f"a number or a text is wanted here; {known}")
        raise self.at(node, "a number or a text in quotes is wanted here")

    def check(self, name: str, value: Any, node: ast.expr) -> None:
        if name not in self.kinds:
            known = [name for name, kinds in self.kinds.items() if kinds and "." not in name]
            raise self.at(node, f"there is no column {name}, {nearest(name, known)}")
        kinds = self.kinds[name]
        if kinds and _kind(value) not in kinds:
            raise self.at(node, f"{name} is a {'/'.join(sorted(kinds))}, not a {_kind(value)}")

    def at(self, node: ast.expr, why: str) -> InputError:
        # The parser counts bytes.
        return _refused(self.line, len(self.line.encode()[: node.col_offset].decode()), why)


def _refused(line: str, place: int, why: str) -> InputError:
    rest = line[place:]
    shown = f"{rest[:30]}…" if len(rest) > 30 else rest
    where = f"at character {place + 1} ({shown!r})" if rest else "at its end"
    return InputError(f"--pick does not parse {where}: {why}; {EXAMPLE}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true/false"
    return "number" if _is_number(value) else "text"
