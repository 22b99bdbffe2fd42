"""The numbers that the page's charts are drawn from, taken from the result as they are.

Nothing is computed here but which values exist: a chart's figures are the JSON's, and where a chart
shows a difference (the waterfall) the script subtracts two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.result_row import EngineRow, ResultTable
from .page_score_charts import group_chart, reliability_chart
from .sweep_text import front_lines, params_text
from .table import SUFFIX, clean, row_label

# Where a latency was not measured beside the others.
OWN_BENCH = ", each in its own trial's bench"

Get = Callable[[EngineRow], Measurement | None]


@dataclass(frozen=True)
class Shown:
    """One result on the page.

    Attributes:
        name: what the page calls it: the path as it was given.
        table: the result.
        root: its directory; None where it is not on disk.
        recipe: as the manifest keeps it; empty where there is none.
        about: more facts for the foot of the page, by their names: hash, versions, data.
        repeat: the command that makes it again; None where it is not known.
        hash: the bundle's; None of a sweep.
        points: of a sweep the bundles of its front, in the order of its rows.
        trials: of a sweep its trials (docs/result-schema.md).
        devices, benches: deploys and benches of the bundle, the oldest first.
    """

    name: str
    table: ResultTable
    root: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    repeat: str | None = None
    hash: str | None = None
    points: tuple[Shown, ...] = ()
    trials: tuple[Mapping[str, Any], ...] = ()
    devices: tuple[Mapping[str, Any], ...] = ()
    benches: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Quantity:
    """What a row can be measured in.

    Attributes:
        key: the row's field; of a metric ``metrics.NAME``.
        title, unit: as the page writes them.
        lower_is_better: None where neither direction is (no front is drawn over it).
        get: the measurement of a row.
        factor: from the JSON's unit to the page's (bytes to MB).
    """

    key: str
    title: str
    unit: str
    lower_is_better: bool | None
    get: Get
    factor: float = 1.0


def _field(
    key: str, title: str, unit: str, lower: bool | None = True, factor: float = 1.0
) -> Quantity:
    return Quantity(key, title, unit, lower, lambda row: getattr(row, key), factor)


def _size(row: EngineRow) -> Measurement | None:
    if row.size_bytes is None:
        return None
    return Measurement(value=row.size_bytes, unit="bytes", n=1)


SPEED = (
    _field("latency_p50_ms", "latency p50", "ms"),
    _field("latency_p90_ms", "latency p90", "ms"),
    _field("latency_p99_ms", "latency p99", "ms"),
    _field("speedup", "speed-up over the reference", "×", lower=False),
    Quantity("size_bytes", "size of the engine's files", "MB", True, _size, 1e-6),
    _field("peak_memory_bytes", "peak memory", "MB", factor=1e-6),
    _field("energy_gross_mj", "energy a sample, gross", "mJ"),
    _field("energy_net_mj", "energy a sample, net", "mJ"),
    _field("gpu_compute_ms", "GPU time", "ms"),
    _field("throughput_per_s", "throughput", "1/s", lower=False),
    _field("load_ms", "loading", "ms"),
    _field("first_inference_ms", "first inference", "ms"),
    _field("int8_mac_share", "multiply-accumulates in INT8", "%", lower=None, factor=100.0),
)


def quantities(results: Sequence[Shown]) -> list[Quantity]:
    """Every quantity that a row of these results has a value of, those of the task first."""
    found: list[Quantity] = []
    for shown in results:
        table = shown.table
        for name in dict.fromkeys(name for row in table.rows for name in row.metrics):
            key = f"metrics.{name}"
            if any(one.key == key for one in found):
                continue
            # Another metric's direction is not in the result: no front is drawn over it.
            lower = table.lower_is_better if name == table.primary else None
            percent = name == table.primary and table.points_per_unit == 100
            found.append(
                Quantity(
                    key,
                    f"{clean(name)} (validation)",
                    "%" if percent else "",
                    lower,
                    lambda row, name=name: row.metrics.get(name),
                    100.0 if percent else 1.0,
                )
            )
    primaries = list(dict.fromkeys(s.table.primary for s in results if s.table.primary))
    of = clean(" or ".join(primaries)) or "metric"
    task = (
        _field("change_points", f"change of {of} (validation)", "points", lower=False),
        _field("drop_points", f"drop of {of} with its one-sided bound", "points"),
        _field("flips", "answers that changed", "%", factor=100.0),
        *_on_test(results, of),
    )
    found = [*task, *found, *SPEED]
    return [q for q in found if any(has_value(q.get(row)) for s in results for row in s.table.rows)]


def _on_test(results: Sequence[Shown], of: str) -> list[Quantity]:
    """What a sweep's rows hold of the test split, which was read once, after the front was fixed."""

    def get(name: str, metric: bool = False) -> Get:
        def found(row: EngineRow) -> Measurement | None:
            values = row.test or {}
            values = values.get("metrics") or {} if metric else values
            return Measurement.model_validate(values[name]) if values.get(name) else None

        return found

    quantities = [
        Quantity(
            "test.change_points", f"change of {of} (test)", "points", False, get("change_points")
        ),
        Quantity("test.drop_points", f"drop of {of} (test)", "points", True, get("drop_points")),
        Quantity("test.flips", "answers that changed (test)", "%", True, get("flips"), 100.0),
    ]
    seen = set()
    for shown in results:
        name, percent = shown.table.primary, shown.table.points_per_unit == 100
        if name and name not in seen:
            seen.add(name)
            quantities.append(
                Quantity(
                    f"test.metrics.{name}",
                    f"{clean(name)} (test)",
                    "%" if percent else "",
                    shown.table.lower_is_better,
                    get(name, metric=True),
                    100.0 if percent else 1.0,
                )
            )
    return quantities


def has_value(m: Measurement | None) -> bool:
    return m is not None and m.value is not None


def kind(row: EngineRow) -> str:
    """How a row is marked: shipped, reference, measured, screened or failed; of a sweep's measured
    rows front, undecided, baseline or dominated."""
    if row.shipped:
        return "shipped"
    if row.status != "measured":
        return row.status
    if row.front in ("yes", "cannot tell"):
        return "front" if row.front == "yes" else "undecided"
    return "baseline" if row.baseline else "dominated" if row.front == "no" else "measured"


def own_bench(row: EngineRow, key: str) -> bool:
    """Whether this latency is of the trial's own bench: it stands beside no other trial's."""
    return row.timed == "by trial" and key.startswith("latency_")


def chart_data(results: Sequence[Shown]) -> dict[str, Any]:
    """Plain data for the page's script.

    Returns:
        ``axes``: one a quantity and way it was got (measured, estimated and emulated values never
        share an axis, nor do latencies of separate benches of a sweep); ``points``: one a row, with
        ``values[axis] = [value, low, high]`` in the JSON's units; ``details``: the charts of
        `sections`, in their order; ``ratios``: latencies of these points are not to be compared.
    """
    axes: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for index, shown in enumerate(results):
        for row in shown.table.rows:
            if row.status == "failed":
                continue
            points.append(
                {
                    "bundle": index,
                    "id": row.id,
                    "label": row_label(shown.table, row),
                    "runtime": clean(row.runtime),
                    "kind": kind(row),
                    "mark": clean(row.mark or ""),
                    "recipe": clean(params_text(row.params)),
                    "front": [clean(line) for line in front_lines(shown.table, row)],
                    "values": {},
                }
            )
    drawn = [row for s in results for row in s.table.rows if row.status != "failed"]
    for quantity in quantities(results):
        for how, suffix in SUFFIX.items():
            for own, more in ((False, ""), (True, OWN_BENCH)):
                key = f"{quantity.key}{suffix}{more}"
                for point, row in zip(points, drawn, strict=True):
                    m = quantity.get(row)
                    if own != own_bench(row, quantity.key):
                        continue
                    if m is not None and m.value is not None and m.how == how:
                        point["values"][key] = [m.value, m.low, m.high]
                if any(key in point["values"] for point in points):
                    axes.append(
                        {
                            "key": key,
                            "title": quantity.title + suffix + more,
                            "unit": quantity.unit,
                            "factor": quantity.factor,
                            "lower": quantity.lower_is_better,
                            # One-sided ends are no interval to tell two engines apart by.
                            "bound": quantity.key.endswith("drop_points"),
                        }
                    )
    # The reference's change is zero by definition; without it the chart would not hold it at all.
    for axis in ("change_points", "drop_points"):
        for point, row in zip(points, drawn, strict=True):
            if row.status == "reference" and any(axis in p["values"] for p in points):
                point["values"].setdefault(axis, [0, None, None])
    return {
        "names": [clean(shown.name) for shown in results],
        "axes": axes,
        "points": points,
        "ratios": len(results) > 1 or any(row.timed == "by trial" for row in drawn),
        "details": [details(shown.table) for shown in sections(results)],
    }


def sections(results: Sequence[Shown]) -> list[Shown]:
    """Every result that gets charts of its own: each, and after a sweep the points of its front."""
    return [one for shown in results for one in (shown, *shown.points)]


def details(table: ResultTable) -> dict[str, Any]:
    """What the charts of one result are drawn from, by the charts' names."""
    return {
        "steps": _steps(table),
        "classes": _classes(table),
        "layers": _layers(table),
        "groups": group_chart(table.final),
        "reliability": reliability_chart(table.final),
    }


def _layers(table: ResultTable) -> list[dict[str, Any]]:
    """Name, operator, µs and type of each layer that took time, in the order they run."""
    return [
        {
            "name": clean(str(layer.get("name", ""))),
            "kind": clean(str(layer.get("kind", ""))),
            "type": clean(str(layer.get("precision") or "no arithmetic")),
            "us": layer["time_ms"] * 1e3,
        }
        for layer in table.layers
        if layer.get("time_ms")
    ]


def _steps(table: ResultTable) -> dict[str, Any]:
    """Label, metric, and time as a fraction of plain INT8 of each step; null where not measured."""
    return {
        "metric": clean(table.primary or "metric"),
        "factor": 100.0 if table.points_per_unit == 100 else 1.0,
        "unit": "%" if table.points_per_unit == 100 else "",
        "lower": table.lower_is_better,
        "rows": [
            {
                "label": clean(str(step.get("step", ""))),
                "metric": step.get("metric"),
                "ratio": step.get("ratio"),
                "latency_p50_ms": step.get("latency_p50_ms"),
            }
            for step in table.steps
        ],
    }


SURE, UNSURE = "more than chance", "cannot be told from none"


def _classes(table: ResultTable) -> dict[str, Any]:
    """The change of each class on test, worst first."""
    rows = []
    for entry in (table.final or {}).get("by_class") or []:
        change = entry.get("change_points") or {}
        if change.get("value") is None:
            continue
        rows.append(
            {
                "label": clean(str(entry.get("class", ""))),
                "n": entry.get("n"),
                "value": change["value"],
                "low": change.get("low"),
                "high": change.get("high"),
                "state": SURE if entry.get("significant") else UNSURE,
            }
        )
    title = "change, points (95 % interval of each class alone)"
    return {"rows": rows, "states": [UNSURE, SURE], "limit": None, "title": title}
