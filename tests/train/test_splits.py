"""Splits never overlap, are seeded and stratified, and no content is on two sides."""

from collections import Counter

import numpy as np
import pytest
from edgeml.train.data_source import DataSource
from edgeml.train.splits import make_splits, named_parts
from hypothesis import given, settings
from hypothesis import strategies as st


def source(n, labels=None, splits=None, content=None):
    content = np.arange(n) if content is None else np.asarray(content)
    return DataSource(
        name="s",
        kind="array",
        read=lambda i: content[i : i + 1],
        places=[str(i) for i in range(n)],
        labels=None if labels is None else np.asarray(labels, np.int64),
        splits=splits,
    )


def sizes(splits):
    return {name: len(part) for name, part in splits.parts.items()}


def test_one_set_keeps_a_fifth_for_calibration_and_is_cut_in_two():
    found = make_splits(source(1000, np.arange(1000) % 10))
    assert sizes(found) == {"train": 0, "validation": 400, "test": 400, "calibration": 200}
    assert "200 kept apart for calibration" in found.how


def test_at_most_300_are_kept_apart():
    assert sizes(make_splits(source(5000, np.arange(5000) % 7)))["calibration"] == 300


def test_with_calibration_of_its_own_nothing_is_kept_apart():
    found = make_splits(source(100, np.arange(100) % 2), want_calibration=False)
    assert sizes(found) == {"train": 0, "validation": 50, "test": 50, "calibration": 0}


def test_every_class_is_in_every_part_in_proportion():
    labels = np.array([0] * 900 + [1] * 100)
    found = make_splits(source(1000, labels))
    for name in ("validation", "test", "calibration"):
        assert labels[found.parts[name]].mean() == pytest.approx(0.1, abs=0.01)


def test_named_splits_stay_and_train_calibrates():
    names = ["train"] * 50 + ["validation"] * 30 + ["test"] * 20
    found = make_splits(source(100, np.arange(100) % 2, names))
    assert sizes(found) == {"train": 50, "validation": 30, "test": 20, "calibration": 50}
    assert set(found.parts["test"]) == set(range(80, 100))


def test_validation_alone_is_cut_in_two():
    names = ["train"] * 50 + ["validation"] * 40
    found = make_splits(source(90, np.arange(90) % 2, names))
    assert sizes(found) == {"train": 50, "validation": 20, "test": 20, "calibration": 50}


def test_without_train_calibration_comes_from_validation_never_from_test():
    names = ["validation"] * 100 + ["test"] * 50
    found = make_splits(source(150, np.arange(150) % 2, names))
    assert sizes(found) == {"train": 0, "validation": 80, "test": 50, "calibration": 20}


def test_a_single_split_name_says_no_more_than_none():
    found = make_splits(source(100, np.arange(100) % 2, ["train"] * 100))
    assert sizes(found)["test"] == 40


def test_the_first_samples_stand_for_all():
    labels = np.sort(np.arange(2000) % 10)  # as folders come: class after class
    found = make_splits(source(2000, labels))
    counts = Counter(labels[found.parts["validation"][:100]].tolist())
    assert len(counts) == 10 and max(counts.values()) < 25


def test_a_seed_repeats_and_another_differs():
    labels = np.arange(200) % 4
    a, b, c = (make_splits(source(200, labels), seed=s).parts["test"] for s in (1, 1, 2))
    assert a.tolist() == b.tolist() != c.tolist()


def test_the_same_content_is_never_on_two_sides():
    content = [0, 1, 2, 0, 1, 3]
    names = ["train", "train", "validation", "test", "validation", "test"]
    found = make_splits(source(6, [0, 0, 1, 1, 0, 1], names, content))
    assert set(found.parts["test"]) == {3, 5}
    assert set(found.parts["validation"]) == {2, 4}
    assert len(found.parts["train"]) == 0
    assert (found.duplicates, found.conflicts) == (2, 1)
    assert "2 duplicates were left out, 1 of them with another label" in found.notes


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60),
    st.sampled_from([None, "random"]),
    st.booleans(),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_scored_parts_never_overlap_nor_does_what_is_kept_apart(rows, named, want, seed):
    labels, content = zip(*rows, strict=True)
    rng = np.random.default_rng(seed)
    words = ["train", "validation", "test"]
    names = [words[i] for i in rng.integers(0, 3, len(rows))] if named else None
    found = make_splits(source(len(rows), labels, names, content), seed=seed, want_calibration=want)
    scored = [*found.parts["validation"], *found.parts["test"]]
    assert len(set(scored)) == len(scored)
    assert not set(scored) & set(found.parts["calibration"])
    assert not set(scored) & set(found.parts["train"])
    used = np.array(content)[[*scored, *found.parts["train"]]]
    assert len(set(used)) == len(used)


def test_named_parts_add_up():
    labels = np.arange(503) % 10
    counts = Counter(named_parts(labels, {"train": 0.6, "validation": 0.2, "test": 0.2}))
    assert sum(counts.values()) == 503 and counts["train"] == pytest.approx(302, abs=1)
