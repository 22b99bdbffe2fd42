"""What only a sweep's page has: the state of its search, and its trials."""

from __future__ import annotations

from collections import Counter

from .page_data import Shown
from .page_summary import duration
from .page_table import plain_cell, table, text
from .sweep_text import params_text


def search_warnings(shown: Shown) -> list[str]:
    """What a reader of an unfinished sweep, or of one whose trials failed, must know first."""
    settings = shown.table.settings
    found = []
    if settings.get("state") in ("running", "interrupted"):
        reads = settings.get("test_reads") or 0
        read = f"was read {reads} times before" if reads else "was not read"
        found.append(
            f"the sweep is {settings['state']}: the front is by what is known so far, the test split {read}"
        )
    bad = Counter(
        str(trial.get("state"))
        for trial in shown.trials
        if trial.get("state") in ("failed", "out of memory", "out of time", "lost")
    )
    if bad:
        told = ", ".join(f"{n} {state}" for state, n in bad.items())
        found.append(f"of {len(shown.trials)} trials {told}: see Trials")
    return found


def search(shown: Shown) -> str:
    """The section of a sweep's search: rungs, hypervolume, every trial."""
    settings = shown.table.settings
    notes = []
    rungs = settings.get("rungs") or []
    if rungs:
        told = "; ".join(
            f"{r.get('rung')}: {r.get('name')} ({r.get('epochs')} epochs)" for r in rungs
        )
        notes.append(f"Rungs: {told}.")
    volume = settings.get("hypervolume") or {}
    if volume.get("value") is not None:
        notes.append(
            f"Hypervolume of the front {volume['value']:.4g}, reference point {volume.get('reference')}, "
            f"ideal {volume.get('ideal')}{', normalised' if volume.get('normalised') else ''}."
        )
    notes.append(
        "An engine dominates another when the interval of the ratio of their median latencies is below 1 and the "
        "lower bound of its paired change of the metric is above −0.5 points (and, where size or energy was asked "
        "for, neither is larger). What only the point values say is told as 'cannot be told'. The search read the "
        "validation split; the test split scored each engine once, when it was on the front or a baseline "
        f"({settings.get('test_reads', 1)} readings)."
    )
    body = [_trial(trial) for trial in shown.trials]
    heads = ["trial", "rung", "from", "recipe", "outcome", "seconds", "reason"]
    trials = table(heads, body, "trials", "Every trial") if body else ""
    told = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    return f"<section><h2>Search</h2>{told}{trials}</section>"


def _trial(trial: dict) -> str:
    seconds = trial.get("seconds")
    written = None if not isinstance(seconds, (int, float)) else duration(seconds)
    params = trial.get("params")
    return (
        "<tr>"
        f"{plain_cell('trial', trial.get('trial'))}{plain_cell('rung', trial.get('rung'))}"
        f"{plain_cell('promoted_from', trial.get('promoted_from'))}"
        f'<td class="remark">{text(params_text(params) if isinstance(params, dict) else "")}</td>'
        f"<td>{text(trial.get('state', ''))}</td>{plain_cell('seconds', seconds, written)}"
        f'<td class="remark">{text(trial.get("reason") or "")}</td>'
        "</tr>"
    )
