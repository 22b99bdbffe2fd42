"""What the test split tells beyond the mean: groups, flipped samples, confidences, explanations."""

from __future__ import annotations

import re
from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.row_text import decimals, points, significant
from .page_data import Quantity, Shown
from .page_table import measured_cell, plain_cell, table, text
from .score_text import drift_line
from .table import metric_text

# A picture of a file is shown only as what the schema says: a PNG that lies in the page.
IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
DROP = Quantity("drop_points", "drop", "points", True, lambda row: None)
INDICES_SHOWN = 400


def groups(shown: Shown, chart: str) -> str:
    """The drop of each group on test, worst first; a note on what was asked and found."""
    fairness = (shown.table.final or {}).get("fairness")
    if not fairness:
        return ""
    limit, scale = fairness.get("limit_points"), shown.table.points_per_unit
    told = f"By {fairness.get('by')}: {fairness.get('judged')} groups of at least {fairness.get('least_n')} samples "
    told += "are judged, by intervals that hold for all of them together (Holm). Positive is worse."
    if limit is not None:
        told += f" No group may lose more than {points(limit)} points: {fairness.get('verdict')}."
    if (overall := fairness.get("overall_points")) is not None:
        told += f" The whole loses {decimals(overall, 2, sign=True)} points."
    if unmatched := fairness.get("unmatched"):
        told += f" {unmatched} samples have no group and are left out."
    body = []
    for row in fairness.get("rows") or []:
        cells = [
            f'<th scope="row">{text(row.get("group", ""))}</th>{plain_cell("n", row.get("n"))}'
        ]
        for name in ("reference", "engine"):
            value = row.get(name)
            written = metric_text(value, scale) if isinstance(value, (int, float)) else None
            cells.append(plain_cell(name, value, written))
        values = row.get("drop_points")
        m = Measurement.model_validate(values) if values else None
        cells.append(_two_sided(m))
        cells.append(f"<td>{text(_judged(row))}</td>")
        cells.append(plain_cell("needed", row.get("needed")))
        body.append(f"<tr>{''.join(cells)}</tr>")
    metric = shown.table.primary or "metric"
    heads = ["group of samples", "n", f"reference {metric}", f"engine {metric}", "drop, points"]
    heads += ["judged", "samples it would take"]
    return f'<p class="note">{text(told)}</p>{chart}' + table(
        heads, body, "groups", "Drop by group on test, worst first"
    )


def _judged(row: dict[str, Any]) -> str:
    said = [str(row.get("verdict") or row.get("reason") or "")]
    if row.get("stands_out"):
        said.append("loses more than the whole")
    return "; ".join(filter(None, said))


def _two_sided(m: Measurement | None) -> str:
    # Not a row's drop, whose ends are one-sided bounds.
    return measured_cell(m, Quantity("group_drop_points", "drop", "points", True, DROP.get))


def flipped(shown: Shown) -> str:
    """Which answers changed, as indices, and the samples themselves where they were asked for."""
    found = (shown.table.final or {}).get("flipped")
    if not found:
        return ""
    parts = []
    for kind, said in (
        ("lost", "right before, wrong now"),
        ("won", "wrong before, right now"),
    ):
        indices = found.get(kind) or []
        told = ", ".join(str(index) for index in indices[:INDICES_SHOWN])
        more = (
            f" and {len(indices) - INDICES_SHOWN:,} more in the JSON"
            if len(indices) > INDICES_SHOWN
            else ""
        )
        parts.append(
            f"<details><summary>{len(indices):,} {said}</summary><p>{text(told + more) or 'none'}</p></details>"
        )
    samples = found.get("samples") or []
    if samples:
        figures = "".join(_sample(sample) for sample in samples)
        parts.append(f'<div class="samples">{figures}</div>')
    else:
        parts.append(
            '<p class="note">The samples themselves are kept only with <code>--samples</code>: they may be '
            "private.</p>"
        )
    return "".join(parts)


def _sample(sample: dict[str, Any]) -> str:
    image, words = sample.get("image"), sample.get("text")
    kind = "lost" if sample.get("kind") == "lost" else "won"
    body = ""
    if isinstance(image, str) and IMAGE.fullmatch(image):
        body = f'<img src="{image}" alt="sample {text(sample.get("index", ""))}">'
    elif words:
        body = f"<blockquote>{text(words)}</blockquote>"
    said = f"{sample.get('target')}: {sample.get('reference')} → {sample.get('engine')}"
    place = f"{sample.get('index')} {sample.get('place') or ''}".strip()
    return (
        f'<figure class="{kind}">{body}<figcaption><strong>{kind}</strong> {text(said)}'
        f'<span class="interval">{text(place)}</span></figcaption></figure>'
    )


def confidences(shown: Shown, chart: str) -> str:
    """Calibration before and after: the expected calibration error, and a table of the bins."""
    found = (shown.table.final or {}).get("confidences")
    if not found:
        return ""
    note = (
        f"Confidence of the answer given, from {found.get('outputs')}, in {found.get('bins')} bins of "
        f"{found.get('binning')}. Of perfect confidences an ECE up to 'by chance' would be seen on so many samples."
    )
    error = Quantity("ece", "ECE", "%", True, lambda row: None, 100.0)
    body, bins = [], []
    for who in ("reference", "engine"):
        one = found[who]
        cells = [f'<th scope="row">{who}</th>']
        cells.append(measured_cell(Measurement.model_validate(one["ece"]), error))
        for name in ("by_chance", "mean_confidence", "accuracy"):
            value = one.get(name)
            cells.append(
                plain_cell(name, value, None if value is None else f"{decimals(value * 100)} %")
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
        for k, entry in enumerate(one.get("bins") or []):
            cells = [f'<th scope="row">{who} {k + 1}</th>{plain_cell("n", entry.get("n"))}']
            for name in ("confidence", "accuracy", "low", "high"):
                value = entry.get(name)
                cells.append(
                    plain_cell(name, value, None if value is None else f"{decimals(value * 100)} %")
                )
            bins.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["of", "ECE", "by chance", "mean confidence", "right"]
    whole = table(heads, body, "confidences", "Calibration error")
    heads = ["bin", "n", "mean confidence", "right", "95 % from", "to"]
    each = table(heads, bins, "bins", "Confidence and accuracy of each bin")
    return f'<p class="note">{text(note)}</p>{whole}{chart}<details><summary>the bins</summary>{each}</details>'


def drift(shown: Shown) -> str:
    """Rank correlation of what the engine looks at with what the reference looks at."""
    found = (shown.table.final or {}).get("drift")
    if not found:
        return ""
    line = drift_line(found)
    more = []
    if found.get("features") is not None:
        more.append(f"{found['features']} features a sample")
    if found.get("calls") is not None:
        more.append(
            f"{found['calls']:,} forward calls in {significant(found.get('seconds') or 0)} s"
        )
    floor = found.get("floor") or {}
    if floor.get("note"):
        more.append(f"floor: {floor['note']}")
    body = []
    for row in found.get("rows") or []:
        cells = [plain_cell("index", row.get("index"))]
        cells.append(f"<td>{text('' if row.get('target') is None else row['target'])}</td>")
        cells += [plain_cell(name, row.get(name)) for name in ("correlation", "floor")]
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["sample", "target", "rank correlation", "floor"]
    rows = table(heads, body, "drift", "Drift of each sample") if body else ""
    told = f'<p class="note">{text("; ".join(more))}</p>' if more else ""
    return f"<p>{text(line)}</p>{told}" + (
        f"<details><summary>each sample</summary>{rows}</details>" if rows else ""
    )
