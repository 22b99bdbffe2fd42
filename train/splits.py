"""Which samples calibrate, which choose, which judge: splits that never overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .data_source import DataSource

# Kept apart for calibration where only one labelled set is given: as many as NNCF reads by default.
CALIBRATION = 300


@dataclass(frozen=True)
class Splits:
    """Indices by split, each in a seeded random order, so that the first few stand for all.

    Attributes:
        parts: ``train``, ``validation``, ``test``, ``calibration`` → int64 indices. No sample is in
            two of the scored parts; calibration comes from train or is kept apart.
        duplicates: samples left out because their content is in another place of the set already.
        conflicts: of these, those whose two labels differ.
        how: one clause on how the parts were made.
        notes: what the user should read.
    """

    parts: Mapping[str, np.ndarray]
    duplicates: int
    conflicts: int
    how: str
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "how": self.how,
            "sizes": {name: len(part) for name, part in self.parts.items()},
            "duplicates_left_out": self.duplicates,
            "duplicates_with_another_label": self.conflicts,
        }


def make_splits(source: DataSource, *, seed: int = 0, want_calibration: bool = True) -> Splits:
    """Cut a source into parts.

    Named splits are kept. Where only one of validation and test is named, it is cut in two; where
    none is, the whole set is. Without a train split a part (a fifth, at most 300) is kept apart for
    calibration. All cuts are seeded and stratified by label.

    Args:
        want_calibration: False where calibration has a source of its own.
    """
    rng = np.random.default_rng(seed)
    labels = _labels(source)
    named = _named(source)
    notes = list(source.notes)
    # Test wins over validation wins over train: what judges is never weakened.
    parts, duplicates, conflicts = _distinct(source, labels, named)
    train = parts.get("train", np.array([], np.int64))
    scored = {name: parts[name] for name in ("validation", "test") if len(parts.get(name, ()))}
    if not scored:
        whole, train, how = train, train[:0], "one set"
    elif len(scored) == 1:
        ((name, whole),) = scored.items()
        how = f"{name} cut in two"
    else:
        whole, how = None, "as named"
    calibration = train
    if want_calibration and len(train) == 0:
        pool = scored["validation"] if whole is None else whole
        kept = _stratified(pool, labels, min(CALIBRATION, len(pool) // 5), rng)
        rest = np.setdiff1d(pool, kept)
        how += f", {len(kept)} kept apart for calibration"
        calibration = kept
        if whole is None:
            scored["validation"] = rest
        else:
            whole = rest
    if whole is not None:
        test = _stratified(whole, labels, len(whole) // 2, rng)
        scored = {"validation": np.setdiff1d(whole, test), "test": test}
        how += ", the rest cut in two (seeded, stratified)" if "one set" in how else ""
    found = {"train": train, **scored, "calibration": calibration}
    if duplicates:
        other = f", {conflicts} of them with another label" if conflicts else ""
        notes.append(f"{duplicates} duplicates were left out{other}")
    shuffled = {name: rng.permutation(np.sort(part)) for name, part in found.items()}
    return Splits(shuffled, duplicates, conflicts, how, notes)


def named_parts(labels: np.ndarray, shares: Mapping[str, float], seed: int = 0) -> list[str]:
    """A split name for each sample: a seeded, stratified cut by `shares` (they add up to 1).

    >>> names = named_parts(np.arange(10) % 2, {"train": 0.6, "test": 0.4})
    >>> names.count("train"), names.count("test")
    (6, 4)
    """
    rng = np.random.default_rng(seed)
    names = np.empty(len(labels), object)
    left = np.arange(len(labels))
    *cut, last = shares
    for name in cut:
        part = _stratified(left, labels, round(shares[name] * len(labels)), rng)
        names[part] = name
        left = np.setdiff1d(left, part)
    names[left] = last
    return names.tolist()


def _labels(source: DataSource) -> np.ndarray:
    return np.zeros(len(source), np.int64) if source.labels is None else source.labels


def _named(source: DataSource) -> Sequence[str] | None:
    """The source's split names; a single name says no more than none."""
    return source.splits if source.splits is not None and len(set(source.splits)) > 1 else None


def _distinct(
    source: DataSource, labels: np.ndarray, named: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], int, int]:
    """Indices by split name (all under ``train`` without names), each content once."""
    rank = {"test": 0, "validation": 1, "train": 2}
    split_of = ["train"] * len(source) if named is None else named
    order = sorted(range(len(source)), key=lambda i: (rank[split_of[i]], i))
    seen: dict[bytes, int] = {}
    kept: dict[str, list[int]] = {}
    duplicates = conflicts = 0
    for index in order:
        content = source.hashes[index]
        if content and content in seen:
            duplicates += 1
            conflicts += bool(labels[index] != labels[seen[content]])
            continue
        seen[content] = index
        kept.setdefault(split_of[index], []).append(index)
    return {name: np.array(part, np.int64) for name, part in kept.items()}, duplicates, conflicts


def _stratified(
    pool: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` indices of `pool`, each class in proportion (largest remainders, ties at random)."""
    if count <= 0:
        return pool[:0]
    groups = [pool[labels[pool] == label] for label in np.unique(labels[pool])]
    exact = np.array([len(g) * count / len(pool) for g in groups])
    take = np.floor(exact).astype(int)
    remainders = exact - take + rng.random(len(groups)) * 1e-6
    for i in np.argsort(-remainders)[: count - take.sum()]:
        take[i] += 1
    return np.concatenate([rng.permutation(g)[:n] for g, n in zip(groups, take, strict=True)])
