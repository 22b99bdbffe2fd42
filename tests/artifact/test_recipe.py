"""A recipe repeats a run: its YAML gives the same hash, and what is wrong in it is named."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from edgeml.artifact.recipe import QuantizeStep, Recipe, build_recipe, read_recipe
from edgeml.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), min_size=1, max_size=12)
recipes = st.builds(
    Recipe,
    model=words,
    weights=st.none() | words,
    data=st.none() | words,
    steps=st.lists(
        st.builds(
            QuantizeStep,
            routes=st.none() | st.just(("nncf", "onnxruntime")),
            calibration_samples=st.integers(1, 10**6),
            nodes_to_exclude=st.lists(words, max_size=2).map(tuple),
        ),
        max_size=1,
    ).map(tuple),
    latency=st.none() | st.integers(1, 100).map("{}%".format),
    precisions=st.none() | st.just(("int8", "bf16")),
    max_drop_points=st.none() | st.floats(0, 1e6),
    threads=st.none() | st.integers(1, 512),
    time_s=st.none() | st.floats(1e-3, 1e9),
    seed=st.integers(min_value=0),
)


@given(recipes)
def test_yaml_on_disk_gives_the_same_recipe_and_hash(recipe):
    again = build_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.hash == recipe.hash


@pytest.mark.parametrize(
    "word", ["yes", "1e3", "null", "2026-01-01", "~", "- a", "a: b", "#x", "ü\n"]
)
def test_words_that_look_like_yaml_stay_words(word):
    recipe = Recipe(model=word)
    assert build_recipe(yaml.safe_load(recipe.to_yaml())).hash == recipe.hash


def test_every_setting_is_in_the_hash():
    seen = {Recipe(model="m").hash, Recipe(model="m", seed=1).hash, Recipe(model="m", batch=2).hash}
    seen |= {Recipe(model="m", steps=(QuantizeStep(),)).hash, Recipe(model="m", strict=True).hash}
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "m"}, "recipe.yaml: unknown key 'modle', did you mean model?"),
        ({"model": "m", 7: "x"}, "unknown key '7', known: "),
        ({"model": "m", None: 1, "zzz": 2}, "unknown key 'None'"),
        (
            {"model": "m", "runtimes": ["opnvino"]},
            "unknown runtime 'opnvino', did you mean openvino?",
        ),
        ({"model": "m", "precisions": ["int9"]}, "unknown precision 'int9', did you mean int8?"),
        ({"model": "m", "target": "jetson"}, "unknown target 'jetson', did you mean jetson-thor?"),
        ({"model": "m", "steps": [{"routes": ["ncf"]}]}, "unknown route 'ncf', did you mean nncf?"),
        (
            {"model": "m", "steps": [{"calibration_method": "min-max"}]},
            "unknown calibration method 'min-max', did you mean minmax?",
        ),
        (
            {"model": "m", "steps": [{"calibration_sample": 5}]},
            "unknown key 'steps.0.calibration_sample', did you mean calibration_samples?",
        ),
        (
            {"model": "m", "steps": [{"step": "prun"}]},
            "unknown step 'prun', did you mean prune?",
        ),
        (
            {"model": "m", "steps": [{"step": "quantize"}, {"step": "prune"}]},
            "prune after quantize is impossible; the order is prune, finetune, quantize, qat",
        ),
        ({"model": "m", "steps": [{"step": "prune"}] * 2}, "step prune stands twice"),
        ({"model": "m", "steps": [{"step": "qat"}]}, "qat needs a quantize step before it"),
        (
            {"model": "m", "steps": [{"step": "prune", "kinds": ["layers"]}]},
            "unknown kind 'layers'",
        ),
        ({"model": "m", "latency": 5}, "--latency 5 has no unit"),
        ({"model": "m", "latency": "0ms"}, "--latency 0ms is no limit above 0"),
        ({"model": "m", "latency": "-5%"}, "--latency -5% is no limit above 0"),
        ({"model": "m", "latency": "150%"}, "--latency 150%: a percentage is of the plain INT8"),
        ({"model": "m", "max_size": "4XB"}, "--max-size 4XB: unknown unit 'XB'"),
        ({"model": "m", "max_energy": "much"}, "--max-energy much is no limit"),
        ({"model": "m", "steps": 3}, "steps: "),
        ({"model": "m", "steps": [3]}, "steps.0: "),
        ({"model": "m", "precisions": "int8"}, "precisions: "),
        ({"model": "m", "batch": 0}, "batch: Input should be greater than or equal to 1, got 0"),
        ({"model": "m", "time_s": float("inf")}, "time_s: Input should be a finite number"),
        (
            {"model": "m", "objective": "speed"},
            "objective: Input should be 'latency' or 'throughput'",
        ),
        ({"model": "m", "max_drop_points": -1}, "--max-drop -1.0 is no budget"),
        ({"model": "m", "max_drop_points": float("nan")}, "--max-drop nan is no budget"),
        ({"model": "m", "version": 2}, "recipe version 2 is not 1; upgrade edgeml"),
        ({"model": "m", "version": "1"}, "recipe version '1' is not 1"),
        ({}, "model: Field required"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(values, message):
    with pytest.raises(InputError) as caught:
        build_recipe(values, "recipe.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


keys = st.sampled_from(sorted(Recipe.model_fields)) | st.text() | st.integers() | st.none()
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(sorted(QuantizeStep.model_fields)) | st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(keys, junk, max_size=6))
def test_garbage_is_bad_input_and_nothing_else(values):
    with contextlib.suppress(InputError):
        build_recipe({"model": "m", **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping"),
        ("- a\n", "holds no mapping"),
        ("a: 1\nb: [1\n", "no valid YAML at line 3: "),
        ("a: b: c\n", "no valid YAML at line 1: mapping values are not allowed here"),
        ("a: 2026-99-99\n", "no valid YAML: month must be in 1..12"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("a: \x00\n", "no valid YAML: "),
        ("[" * 3000, "no valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_says_where(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_is_read_as_json(tmp_path):
    (tmp_path / "r.json").write_text('{"model": "m"}')
    assert build_recipe(read_recipe(tmp_path / "r.json")).model == "m"
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(InputError, match="no valid JSON"):
        read_recipe(tmp_path / "r.json")


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    for name, reason in (
        ("none.yaml", "No such file"),
        (".", "directory"),
        ("latin.yaml", "utf-8"),
    ):
        with pytest.raises(InputError, match=f"cannot be read: .*{reason}"):
            read_recipe(tmp_path / name)


def test_a_recipe_is_written_and_read_back(tmp_path):
    recipe = Recipe(model="net.py:build", steps=(QuantizeStep(),), preprocess={"scale": 1 / 255})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert build_recipe(read_recipe(tmp_path / "r.yaml")).hash == recipe.hash


def test_the_line_at_fault_is_named(tmp_path):
    file = tmp_path / "r.yaml"
    for text, message in (
        ("model: m\nsteps:\n- step: prune\n  rounds: many\n", "line 4: steps.0.rounds: Input"),
        ("model: m\nsteps:\n- step: quantize\n- step: prune\n", "line 4: prune after quantize"),
        ("model: m\nsteps:\n- step: pruen\n", "line 3: unknown step 'pruen'"),
        ("model: m\nlatency: 150%\n", "line 2: --latency 150%"),
        ("model: m\n\nbatch: many\n", "line 3: batch: "),
    ):
        file.write_text(text)
        with pytest.raises(InputError) as caught:
            build_recipe(read_recipe(file), f"recipe {file}", file)
        assert message in str(caught.value)


def test_a_flags_fault_is_not_blamed_on_a_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nlatency: 60%\n")
    with pytest.raises(InputError, match=r"^options: --latency 150%"):
        build_recipe({**read_recipe(file), "latency": "150%"}, "options", file)


def test_limits_are_read_with_their_units():
    recipe = Recipe(model="m", latency="60%", max_size=" 1 MiB ", max_energy="0.5J")
    assert recipe.limit("latency").absolute(2.0) == pytest.approx(1.2)
    assert recipe.limit("max_size").value == 2**20
    assert recipe.limit("max_energy").value == 500
    assert recipe.limit("latency_p99") is None
