"""What was measured on devices that a bundle was deployed to, and the labels of every energy figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.result_row import EngineRow
from ..artifact.row_text import engine_label, significant
from .page_data import Quantity, Shown
from .page_table import measured_cell, plain_cell, table, text
from .table import row_label

EMULATED = '<td class="none" title="emulated: it means nothing">— (emulated)</td>'
LABELS = ("meter", "how", "scope", "where", "rails", "achieved_hz", "windows", "window_s", "idle_w")
LABELS += ("mean_w", "p50_shift", "conditions_before", "conditions_after", "reason")
LABEL_HEADS = ["engine", "gross mJ", "net mJ", "meter", "how", "scope", "where", "rails", "Hz"]
LABEL_HEADS += ["windows", "of s", "idle W", "mean W", "p50 shift", "before", "after", "reason"]


def devices(shown: Shown) -> str:
    """A row an engine and deploy; empty where nothing was deployed."""
    if not shown.devices:
        return ""
    body = [_row(record, row) for record in shown.devices for row in record.get("rows") or [{}]]
    metric = shown.table.primary or "score"
    heads = [
        "device",
        "when",
        "outcome",
        "engine",
        "built by",
        "check",
        f"{metric}",
        "drop, points",
    ]
    heads += ["p50 ms", "p99 ms", "end to end ms", "mJ", "net mJ", "W", "rate", "remarks"]
    lines = [
        f"{record.get('device')}: {record['verdict_line']}"
        for record in shown.devices
        if record.get("verdict_line")
    ]
    told = "".join(f'<p class="note">{text(line)}</p>' for line in lines)
    return table(heads, body, "devices", "Devices it was deployed to") + told


def _row(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    emulated = bool(record.get("emulated"))
    facts = record.get("facts") or {}
    board = (facts.get("board") or {}).get("model") or facts.get("cpu") or ""
    cells = [
        f'<th scope="row">{text(record.get("device", ""))}<span class="interval">{text(board)}</span></th>',
        f"<td>{text(record.get('created', ''))}</td>",
    ]
    if not row:
        reason = record.get("reason") or ""
        empty = "<td></td>" * 12
        return f"<tr>{''.join(cells)}<td>{text(record.get('status', ''))}</td>{empty}<td>{text(reason)}</td></tr>"
    engine = EngineRow.model_validate(row["engine"])
    state = "★ ships there" if engine.shipped else engine.status
    check = row.get("check_text") or ""
    checked = f"{row.get('check', '')} ({check})" if check else row.get("check", "")
    cells += [f"<td>{text(state)}</td>", f"<td>{text(engine_label(engine))}</td>"]
    cells += [f"<td>{text(row.get('built') or '')}</td>", f"<td>{text(checked)}</td>"]
    name = record.get("primary") or ""
    percent = "%" if record.get("points_per_unit", 100) == 100 else ""
    cells.append(_cell(engine.metrics.get(name), f"metrics.{name}", percent))
    cells.append(_cell(engine.drop_points, "drop_points", "points"))
    timed = (engine.latency_p50_ms, "latency_p50_ms"), (engine.latency_p99_ms, "latency_p99_ms")
    cells += [EMULATED if emulated else _cell(m, key, "ms") for m, key in timed]
    stages = {
        stage: Measurement.model_validate(values)
        for stage, values in (row.get("end_to_end_ms") or {}).items()
    }
    told = [f"{s} {significant(m.value)}" for s, m in stages.items() if m.value is not None]
    cells.append(
        EMULATED if emulated and told else f'<td class="remark">{text(", ".join(told))}</td>'
    )
    for key, unit in (("energy_gross_mj", "mJ"), ("energy_net_mj", "mJ"), ("mean_w", "W")):
        values = row.get(key)
        m = Measurement.model_validate(values) if values else None
        known = m is not None and m.value is not None
        cells.append(EMULATED if emulated and known else _cell(m, key, unit))
    rate = row.get("rate") or {}
    held = f"{rate.get('held_hz')} of {rate.get('wanted_hz')}/s" if rate else ""
    cells.append(EMULATED if emulated and rate else f"<td>{text(held)}</td>")
    remarks = "; ".join(filter(None, [engine.reason, engine.mark, *engine.warnings]))
    cells.append(f'<td class="remark">{text(remarks)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(m: Measurement | None, key: str, unit: str) -> str:
    return measured_cell(m, Quantity(key, "", unit, None, lambda row: None))


def energy(shown: Shown) -> str:
    """Every label of every energy figure, of this machine and of devices; empty where none was asked for."""
    found: list[tuple[str, Measurement | None, Measurement | None, Mapping[str, Any]]] = []
    for row in shown.table.rows:
        if row.energy:
            label = row_label(shown.table, row)
            found.append((label, row.energy_gross_mj, row.energy_net_mj, row.energy))
    for record in shown.devices:
        for row in record.get("rows") or []:
            if row.get("energy"):
                engine = EngineRow.model_validate(row["engine"])
                figures = [
                    Measurement.model_validate(row[key]) if row.get(key) else None
                    for key in ("energy_gross_mj", "energy_net_mj")
                ]
                label = f"{record.get('device')}: {engine_label(engine)}"
                found.append((label, *figures, row["energy"]))
    if not found:
        return ""
    body = []
    for label, gross, net, labels in found:
        cells = [f'<th scope="row">{text(label)}</th>']
        cells += [_cell(gross, "energy_gross_mj", "mJ"), _cell(net, "energy_net_mj", "mJ")]
        cells += [_label(name, labels.get(name)) for name in LABELS]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return table(LABEL_HEADS, body, "energy", "Energy a sample, with its labels")


def _label(name: str, value: Any) -> str:
    if isinstance(value, (int, float)):
        return plain_cell(name, value)
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = ", ".join(map(str, value))
    return f'<td class="remark">{text("" if value is None else value)}</td>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_plain(one)}" for key, one in value.items()) + ")"
    return str(value)
