"""What changed from one result to another, and what of it is more than chance.

No figure is measured here. Each result holds intervals; of two a difference gets one by the method of
variance estimates recovery (MOVER: Newcombe 1998, method 10; Zou and Donner 2008), as of independent
samples. That is cautious where both were scored on the same samples. Of right and wrong answers it can be
shown: of two engines set against one reference, per sample both changes are ≤ 0 where the reference is right
and ≥ 0 where it is wrong, so that their product is never negative, and their covariance, which the method
leaves out and which would narrow the interval, not below minus the product of the two mean changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..artifact.measurement import Measurement
from ..artifact.result_row import EngineRow, ResultTable
from .page_data import Shown, has_value
from .table import row_label

Says = Literal["better", "worse", "no difference shown", "equal", "not comparable"]
METHOD = "MOVER, as of independent samples"


@dataclass(frozen=True)
class Change:
    """One quantity of two results.

    Attributes:
        quantity: its name, with the unit of `a` and `b`.
        key: the field of the JSON.
        a, b: of the first and of the other result; None where it has none.
        difference: other less first, or other ÷ first where `unit` is ``ratio``; None where that
            would compare what must not be compared.
        says: better or worse only where the interval of the difference shows it.
        why: what was compared, or why it was not.
    """

    quantity: str
    key: str
    a: Measurement | None
    b: Measurement | None
    difference: Measurement | None
    says: Says
    why: str

    def as_json(self) -> dict[str, Any]:
        """Plain values, as ``comparison`` of report.json holds them (docs/report.md)."""

        def plain(m: Measurement | None) -> dict[str, Any] | None:
            return m.model_dump(mode="json") if m else None

        return {
            "quantity": self.quantity,
            "key": self.key,
            "a": plain(self.a),
            "b": plain(self.b),
            "difference": plain(self.difference),
            "says": self.says,
            "why": self.why,
        }


def compare(a: Shown, b: Shown) -> list[Change]:
    """The engines that two results ship, quantity by quantity.

    Returns:
        Empty where one of them ships nothing (a sweep, a missed budget, a bench).
    """
    one, two = shipped(a.table), shipped(b.table)
    if one is None or two is None:
        return []
    found = [*_score(a.table, b.table, one, two), _speed(a, b, one, two)]
    for key, name in (("latency_p50_ms", "p50, ms"), ("latency_p99_ms", "p99, ms")):
        found.append(
            _beside(name, key, getattr(one, key), getattr(two, key), "timed in separate runs")
        )
    found.append(_size(one, two))
    apart = _machines_differ(a.table, b.table)
    for key, name in (
        ("energy_gross_mj", "energy a sample, gross, mJ"),
        ("peak_memory_bytes", "peak memory, bytes"),
    ):
        m, n = getattr(one, key), getattr(two, key)
        if apart:
            found.append(_beside(name, key, m, n, f"measured {apart}"))
        else:
            found.append(_difference(name, key, m, n, True, "separate runs on one machine"))
    return [change for change in found if has_value(change.a) or has_value(change.b)]


def shipped(table: ResultTable) -> EngineRow | None:
    """The row that ships; None where nothing does."""
    return next((row for row in table.rows if row.shipped), None)


def _score(a: ResultTable, b: ResultTable, one: EngineRow, two: EngineRow) -> list[Change]:
    """The primary metric on test, by the change to one reference where both have the same."""
    first, other = a.final or {}, b.final or {}
    name = a.primary or "metric"
    ours, theirs = (_metric(final, "engine", a.primary) for final in (first, other))
    key = f"final.engine.metrics.{name}"
    if a.primary != b.primary:
        why = f"scored by different metrics: {a.primary} and {b.primary}"
        return [_beside(f"{name} (test)", key, ours, theirs, why)]
    if not first or not other:
        m, n = one.metrics.get(name), two.metrics.get(name)
        why = "not both have a test score, and validation splits are not told apart by a hash"
        return [_beside(f"{name} (validation)", f"metrics.{name}", m, n, why)]
    if first.get("split_hash") != other.get("split_hash"):
        return [_beside(f"{name} (test)", key, ours, theirs, "scored on different test samples")]
    references = [_metric(final, "reference", a.primary) for final in (first, other)]
    alike = None not in references and references[0].value == references[1].value
    if alike and (first.get("reference") or {}).get("id") == (other.get("reference") or {}).get(
        "id"
    ):
        changes = [_measurement(final.get("change_points")) for final in (first, other)]
        why = "the same test samples and the same reference: by the paired changes to it"
        told = _difference("change to the reference on test, points", "final.change_points",
                           *changes, False, why)  # fmt: skip
        return [told, _beside(f"{name} (test)", key, ours, theirs, "see the change above")]
    why = "the same test samples, another reference: by the metric's own intervals, unpaired"
    return [_difference(f"{name} (test)", key, ours, theirs, a.lower_is_better, why)]


def _speed(a: Shown, b: Shown, one: EngineRow, two: EngineRow) -> Change:
    """Ratio of the p50s: of one bench of both where there is one, else of the speed-ups."""
    name, key = "speed (other ÷ first)", "speedup"
    if (found := _benched(a, b)) is not None:
        ratio, when = found
        return Change(name, key, one.speedup, two.speedup, ratio, _ratio_says(ratio),
                      f"timed in one process by edgeml bench, {when}")  # fmt: skip
    m, n = one.speedup, two.speedup
    if apart := _machines_differ(a.table, b.table):
        return _beside(name, key, m, n, f"timed {apart}")
    for word in ("threads", "batch"):
        values = a.table.settings.get(word), b.table.settings.get(word)
        if values[0] != values[1]:
            return _beside(name, key, m, n, f"timed with {word} {values[0]} and {values[1]}")
    references = [next((r for r in s.table.rows if r.status == "reference"), None) for s in (a, b)]
    if None in references or references[0].id != references[1].id:
        return _beside(name, key, m, n, "set against different references")
    if a.table.settings.get("model") != b.table.settings.get("model"):
        return _beside(name, key, m, n, "set against the references of different networks")
    if not (has_value(m) and has_value(n)) or m.value <= 0 or n.value <= 0:
        return _beside(name, key, m, n, "not both were timed")
    ratio = _ratio(m, n)
    why = "ratio of the two speed-ups over the same reference, of separate runs; edgeml bench times both together"
    return Change(name, key, m, n, ratio, _ratio_says(ratio), why)


def _benched(a: Shown, b: Shown) -> tuple[Measurement, str] | None:
    """The newest bench that timed both bundles in one process, as other ÷ first (above 1 is faster)."""
    for bench in reversed([*a.benches, *b.benches]):
        settings = bench.get("settings") or {}
        bundles = settings.get("bundles") or {}
        names = {digest: name for name, digest in bundles.items()}
        mine, theirs = names.get(a.hash), names.get(b.hash)
        if a.hash is None or None in (mine, theirs) or mine == theirs:
            continue
        comparisons = settings.get("comparisons") or {}
        for name, against, turned in ((theirs, mine, False), (mine, theirs, True)):
            entry = comparisons.get(name) or {}
            if entry.get("against") != against:
                continue
            ratio = Measurement.model_validate(entry["ratio"])
            cpu = (bench.get("machine") or {}).get("cpu")
            return (_turned(ratio) if turned else ratio), f"on {cpu or 'an unnamed machine'}"
    return None


def _turned(ratio: Measurement) -> Measurement:
    ends = {"low": None, "high": None}
    if ratio.low and ratio.high:
        ends = {"low": 1 / ratio.high, "high": 1 / ratio.low}
    return ratio.model_copy(update={"value": 1 / ratio.value if ratio.value else None, **ends})


def _ratio(m: Measurement, n: Measurement) -> Measurement:
    """n ÷ m with MOVER on the logarithms."""
    logs = [
        [math.log(value) if value and value > 0 else None for value in (x.value, x.low, x.high)]
        for x in (m, n)
    ]
    value, low, high = _mover(*logs)
    ends = [None if end is None else math.exp(end) for end in (low, high)]
    return Measurement(
        value=math.exp(value),
        unit="ratio",
        n=min(m.n, n.n),
        low=ends[0],
        high=ends[1],
        method=METHOD,
    )


def _mover(
    m: Sequence[float | None], n: Sequence[float | None]
) -> tuple[float, float | None, float | None]:
    """n − m of two (value, low, high) with the interval of the difference."""
    (a, a_low, a_high), (b, b_low, b_high) = m, n
    value = b - a
    if None in (a_low, a_high, b_low, b_high):
        return value, None, None
    low = value - math.hypot(b - b_low, a_high - a)
    return value, low, value + math.hypot(b_high - b, a - a_low)


def _difference(
    name: str,
    key: str,
    m: Measurement | None,
    n: Measurement | None,
    lower_is_better: bool,
    why: str,
) -> Change:
    if not (has_value(m) and has_value(n)):
        return _beside(name, key, m, n, "not both were measured")
    if m.how != n.how:
        return _beside(name, key, m, n, f"one is {m.how}, the other {n.how}")
    value, low, high = _mover((m.value, m.low, m.high), (n.value, n.low, n.high))
    made = Measurement(
        value=value, unit=m.unit, n=min(m.n, n.n), low=low, high=high, how=m.how, method=METHOD
    )
    if low is None or high is None:
        return Change(name, key, m, n, made, "not comparable", f"{why}; without an interval")
    says: Says = "no difference shown"
    if low > 0 or high < 0:
        says = "worse" if (low > 0) == lower_is_better else "better"
    return Change(name, key, m, n, made, says, why)


def _size(one: EngineRow, two: EngineRow) -> Change:
    sizes = [
        None if row.size_bytes is None else Measurement(value=row.size_bytes, unit="bytes", n=1)
        for row in (one, two)
    ]
    name, key = "size of the engine's files, bytes", "size_bytes"
    if None in sizes:
        return _beside(name, key, *sizes, "not both are known")
    made = Measurement(value=sizes[1].value - sizes[0].value, unit="bytes", n=1)
    says: Says = "equal" if not made.value else "worse" if made.value > 0 else "better"
    return Change(name, key, *sizes, made, says, "counted, without uncertainty")


def _beside(name: str, key: str, m: Measurement | None, n: Measurement | None, why: str) -> Change:
    return Change(name, key, m, n, None, "not comparable", why)


def _ratio_says(ratio: Measurement) -> Says:
    if ratio.low is None or ratio.high is None:
        return "no difference shown"
    return "better" if ratio.low > 1 else "worse" if ratio.high < 1 else "no difference shown"


def _measurement(values: Any) -> Measurement | None:
    return Measurement.model_validate(values) if values else None


def _metric(final: Mapping[str, Any], who: str, name: str | None) -> Measurement | None:
    return _measurement(((final.get(who) or {}).get("metrics") or {}).get(name))


def _machines_differ(a: ResultTable, b: ResultTable) -> str | None:
    """What keeps a time of one from standing beside one of the other; None where nothing does."""
    one, two = a.machine, b.machine
    if one.get("cpu") != two.get("cpu") or one.get("isa") != two.get("isa"):
        return "on different machines"
    if one.get("cores") != two.get("cores"):
        return f"on {one.get('cores')} and on {two.get('cores')} cores"
    return None


def settings_changed(a: Shown, b: Shown) -> list[tuple[str, str, str]]:
    """What differs in how the two were made: what ships, recipe, settings, versions, machine, data.

    Returns:
        Name, of the first, of the other.
    """
    one, two = shipped(a.table), shipped(b.table)
    pairs: list[tuple[str, Any, Any]] = [
        (
            "what ships",
            row_label(a.table, one) if one else "nothing",
            row_label(b.table, two) if two else "nothing",
        )
    ]
    for title, left, right in (
        ("recipe", a.recipe, b.recipe),
        ("setting", a.table.settings, b.table.settings),
        ("version", a.table.machine.get("tools") or {}, b.table.machine.get("tools") or {}),
        ("machine", a.table.machine, b.table.machine),
        ("", {"data fingerprint": a.about.get("data fingerprint")},
             {"data fingerprint": b.about.get("data fingerprint")}),
    ):  # fmt: skip
        for name in dict.fromkeys([*left, *right]):
            # A load is never the same; settings repeat the recipe; the rest stands in the table.
            if (title, name) in NOT_TOLD:
                continue
            if title == "setting" and name in a.recipe and name in b.recipe:
                continue
            pairs.append((f"{title} {name}".strip(), left.get(name), right.get(name)))
    return [(name, _said(x), _said(y)) for name, x, y in pairs if x != y]


NOT_TOLD = {
    ("machine", "tools"),
    ("machine", "load_average"),
    ("setting", "bundles"),
    ("setting", "comparisons"),
    ("setting", "percentiles"),
    ("setting", "end_to_end"),
}


def _said(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return " → ".join(_step(v) for v in value)
    return "none" if value is None else str(value)


def _step(step: Mapping[str, Any]) -> str:
    """A recipe's step with what it sets."""
    set_ = [f"{k} {v}" for k, v in step.items() if k != "step" and v not in (None, [], False)]
    return f"{step.get('step')} ({', '.join(set_)})" if set_ else str(step.get("step"))


def comparisons(results: Sequence[Shown]) -> list[tuple[Shown, list[Change]]]:
    """Each later result set against the first, where both ship an engine."""
    found = [(other, compare(results[0], other)) for other in results[1:]]
    return [(other, changes) for other, changes in found if changes]
