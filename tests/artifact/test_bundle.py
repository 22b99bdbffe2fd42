"""A bundle from elsewhere is hostile: what is wrong with it is one line, and nothing of it runs."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import onnx
import pytest
from edgeml.artifact.bundle import bundle_around, open_bundle
from edgeml.artifact.content_hash import hash_file
from edgeml.artifact.manifest import EngineEntry
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.errors import BundleError, InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def bundle(make_bundle, tmp_path):
    return make_bundle(tmp_path / "out")


def refused(root, message, **options):
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(root, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# ── what is whole ────────────────────────────────────────────────────────────────────────────────


def test_a_whole_bundle_opens_and_is_named_by_its_manifests_hash(bundle):
    found = open_bundle(bundle)
    assert sorted(found.manifest.files) == ["model.onnx", "notes.txt"]
    assert found.hash == hash_file(bundle / "manifest.json")
    assert found.engine() == found.engine("onnxruntime-fp32")
    assert found.file("model.onnx") == bundle / "model.onnx"
    assert open_bundle(str(bundle)) == found


def test_unknown_names_are_told_with_the_nearest(bundle):
    found = open_bundle(bundle)
    with pytest.raises(BundleError, match=r"holds no modle.onnx, did you mean model.onnx\?"):
        found.file("modle.onnx")
    with pytest.raises(
        BundleError, match=r"no engine 'onnxruntime-fp16', did you mean onnxruntime"
    ):
        found.engine("onnxruntime-fp16")


@pytest.mark.parametrize("fields", [{"shipped": None}, {"engines": []}])
def test_a_bundle_may_ship_no_engine_and_says_so(make_bundle, tmp_path, fields):
    with pytest.raises(BundleError, match="ships no engine"):
        open_bundle(make_bundle(tmp_path / "out", **fields)).engine()


def test_later_measurements_are_files_of_their_own(bundle):
    before = open_bundle(bundle).hash
    (bundle / "measurements").mkdir()
    (bundle / "measurements" / "jetson.json").write_text("{}")
    assert open_bundle(bundle).hash == before


# ── what is not ──────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_bundle_says_so(tmp_path, bundle):
    refused(tmp_path / "none", "no such directory")
    refused(bundle / "notes.txt", "no such directory")
    refused(tmp_path, "it has no manifest.json")
    refused(tmp_path / ("n" * 300), "cannot be read: File name too long")


@pytest.mark.parametrize("data", [b"plane\n", b"plain\n\n", b""])
def test_a_changed_file_is_found(bundle, data):
    (bundle / "notes.txt").write_bytes(data)
    refused(bundle, "notes.txt does not match its hash: damaged or changed")


def test_a_missing_file_is_found(bundle):
    (bundle / "notes.txt").unlink()
    refused(bundle, "notes.txt is missing; copy the bundle again")


@pytest.mark.parametrize("name", ["evil.py", "sub/evil.py", ".hidden"])
def test_an_unlisted_file_is_found(bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("x")
    refused(bundle, f"{name} is not listed in its manifest")


@pytest.mark.parametrize(
    "name", ["../secret", "sub/../../secret", "{tmp}/secret", "a\\b", "..\\secret", "", "x\0y"]
)
def test_a_path_outside_is_refused_before_it_is_read(bundle, edit_manifest, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("s")
    record = {"sha256": hash_file(secret), "size_bytes": 1}
    name = name.replace("{tmp}", str(tmp_path))
    edit_manifest(bundle, lambda m: m["files"].update({name: record}))
    refused(bundle, "points outside the bundle; refused")


def test_a_name_too_long_for_the_system_is_refused(bundle, edit_manifest):
    record = {"sha256": "0", "size_bytes": 1}
    edit_manifest(bundle, lambda m: m["files"].update({"n" * 300: record}))
    refused(bundle, "cannot be read: .*File name too long")


def test_a_link_is_refused_even_to_the_right_bytes(bundle, tmp_path):
    (bundle / "notes.txt").rename(tmp_path / "elsewhere.txt")
    (bundle / "notes.txt").symlink_to(tmp_path / "elsewhere.txt")
    refused(bundle, "'notes.txt' is a link; refused")


def test_a_linked_folder_is_refused(make_bundle, tmp_path):
    root = make_bundle(tmp_path / "out", files={"sub/a.txt": b"x"})
    (root / "sub").rename(tmp_path / "elsewhere")
    (root / "sub").symlink_to(tmp_path / "elsewhere")
    refused(root, "'sub/a.txt' is a link; refused")


@pytest.mark.parametrize("name", ["extra", "measurements"])
def test_an_unlisted_link_is_refused(bundle, tmp_path, name):
    (bundle / name).symlink_to(tmp_path)
    refused(bundle, f"{name} is not listed")


def test_a_linked_manifest_is_refused(bundle, tmp_path):
    (bundle / "manifest.json").rename(tmp_path / "m.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "m.json")
    refused(bundle, "it has no manifest.json")


def test_a_pipe_in_place_of_a_file_does_not_hang(bundle):
    (bundle / "notes.txt").unlink()
    os.mkfifo(bundle / "notes.txt")
    refused(bundle, "notes.txt is missing")


def test_a_newer_manifest_asks_for_an_upgrade(bundle, edit_manifest):
    edit_manifest(bundle, lambda m: m.update(version=2, unheard_of={"a": 1}))
    refused(bundle, r"written by a newer edgeml .manifest 2, this one reads 1.: upgrade")


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5, [1]])
def test_another_version_is_damage(bundle, edit_manifest, version):
    edit_manifest(bundle, lambda m: m.update(version=version))
    refused(bundle, "is damaged: manifest version")


def test_user_code_needs_trust(make_bundle, tmp_path):
    code = {"file": "net.py", "text": "raise SystemExit", "sha256": "0"}
    root = make_bundle(tmp_path / "out", model={"user_code": code})
    refused(root, r"names user code .net.py.; --trust-code runs it")
    assert open_bundle(root, trust_code=True).manifest.model["user_code"] == code
    root = make_bundle(tmp_path / "odd", model={"user_code": "two\nlines"})
    refused(root, "names user code")


def test_trust_does_not_excuse_damage(make_bundle, tmp_path):
    root = make_bundle(tmp_path / "out", model={"user_code": {"file": "net.py"}})
    (root / "notes.txt").write_text("other")
    refused(root, "does not match its hash", trust_code=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["none.onnx"], "names 'none.onnx', which the bundle does not list"),
        (["../m.onnx"], "names '../m.onnx', which the bundle does not list"),
        ([], "has no files"),
        (["notes.txt"], "runs 'notes.txt', which is no .xml or .onnx file"),
    ],
)
def test_an_engine_runs_files_of_the_bundle_only(make_bundle, tmp_path, files, message):
    entry = EngineEntry(id="e", runtime="onnxruntime", precision="fp32", files=files)
    refused(make_bundle(tmp_path / "out", engines=[entry]), message)


# ── external data ────────────────────────────────────────────────────────────────────────────────


def with_external_data(model: Path, location: str) -> bytes:
    """The model's bytes, its weights said to lie at `location`."""
    proto = onnx.load_model(model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    return proto.SerializeToString()


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", ""])
def test_external_data_outside_is_refused(make_bundle, conv_onnx, tmp_path, location):
    data = with_external_data(conv_onnx, location)
    root = make_bundle(tmp_path / "out", files={"bad.onnx": data})
    refused(root, "outside the model's folder; refused")


def test_external_data_must_be_listed(make_bundle, conv_onnx, tmp_path):
    data = with_external_data(conv_onnx, "w.bin")
    root = make_bundle(tmp_path / "good", files={"bad.onnx": data, "w.bin": b"0" * 4096})
    open_bundle(root)
    root = make_bundle(tmp_path / "bad", files={"bad.onnx": data})
    refused(root, "external data 'w.bin' is missing")
    data = with_external_data(conv_onnx, "measurements/w.bin")
    root = make_bundle(tmp_path / "worse", files={"bad.onnx": data})
    (root / "measurements").mkdir()
    (root / "measurements" / "w.bin").write_bytes(b"0" * 4096)
    refused(root, "uses w.bin, which the bundle does not list")


def test_a_damaged_onnx_is_the_bundles_fault(make_bundle, tmp_path):
    refused(make_bundle(tmp_path / "out", files={"bad.onnx": b"no model"}), "is no ONNX model")


# ── garbage ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": 1', b"1" * 9999]
)
def test_damaged_json_is_told(bundle, data):
    (bundle / "manifest.json").write_bytes(data)
    refused(bundle, r"manifest.json is damaged")


def test_the_damaged_place_is_named(bundle, edit_manifest):
    edit_manifest(bundle, lambda m: m["engines"][0].update(threads="many"))
    refused(bundle, r"damaged at engines\.0\.threads")
    edit_manifest(bundle, lambda m: m.pop("created"))
    refused(bundle, "damaged at created")


names = st.text(max_size=6) | st.sampled_from(
    ["model.onnx", "../x", "a/b", ".", "n" * 300, "\ud800"]
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
record = st.fixed_dictionaries({"sha256": names, "size_bytes": st.integers()})
engine = st.fixed_dictionaries(
    {"id": names, "runtime": names, "precision": names, "files": st.lists(names, max_size=2)},
    optional={"threads": junk, "batch": junk, "input_shapes": junk},
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "version": st.integers() | junk,
        "files": st.dictionaries(names, record, max_size=3) | junk,
        "engines": st.lists(engine, max_size=2) | junk,
        "shipped": names | junk,
        "model": st.dictionaries(st.just("user_code"), junk) | junk,
        "unknown": junk,
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fields)
def test_a_manifest_of_garbage_is_a_bundle_error_and_nothing_else(bundle, changes):
    file = bundle / "manifest.json"
    good = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(good), **changes}))
        with contextlib.suppress(BundleError):
            open_bundle(bundle).engine()
    finally:
        file.write_text(good)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=64))
def test_bytes_of_garbage_are_a_bundle_error_and_nothing_else(bundle, data):
    file = bundle / "manifest.json"
    good = file.read_bytes()
    try:
        file.write_bytes(data)
        refused(bundle, "is damaged")
    finally:
        file.write_bytes(good)


def test_a_file_inside_a_bundle_is_told_before_it_is_written(make_bundle, tmp_path):
    root = make_bundle(tmp_path / "bundle")
    assert bundle_around(root / "more.json") == root
    assert bundle_around(root / "folder" / "more.json") == root
    assert bundle_around(root / "measurements" / "more.json") is None
    (tmp_path / "manifest.json").write_text("{}")  # a browser extension's, say
    assert bundle_around(tmp_path / "more.json") is None
    with pytest.raises(InputError, match="lies in the bundle"), WorkDirectory(root / "out", "r"):
        pass
    open_bundle(root)
