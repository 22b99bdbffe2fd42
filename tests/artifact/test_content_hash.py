"""Identity by content."""

from __future__ import annotations

import hashlib
import io

import pytest
from edgeml.artifact.content_hash import _digest, hash_bytes, hash_file, hash_json
from edgeml.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_a_files_hash_is_sha256_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 9000  # more than one piece
    (tmp_path / "a").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert hash_file(tmp_path / "a") == hash_bytes(data) == expected
    assert _digest(io.BytesIO(data)) == expected  # Python 3.10 has no file_digest


def test_the_order_of_keys_does_not_matter_that_of_lists_does():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json([1, 2]) != hash_json([2, 1])
    assert hash_json("1") != hash_json(1)


@given(plain)
def test_a_value_and_its_json_copy_have_one_hash(value):
    import json

    assert hash_json(json.loads(json.dumps(value))) == hash_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", {1: "a", "b": 2}])
def test_what_json_does_not_know_is_refused(value):
    with pytest.raises(InputError, match="no canonical JSON"):
        hash_json({"value": value})
