"""Opening a model by its reference, and every way that fails."""

import sys
from importlib.util import find_spec

import onnx
import pytest
import torch
from edgeml.artifact.bundle import write_manifest
from edgeml.artifact.manifest import Manifest
from edgeml.errors import BundleError, MissingPart, ModelError
from edgeml.train.model_source import open_model
from onnx import TensorProto, helper
from safetensors.torch import save_file

NET = """
import torch
from torch import nn

print("a print that must not reach stdout")

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(3, width)
    def forward(self, x):
        return self.fc(x)

def build():
    return Net()

def needs(width):
    return Net(width)

def fails():
    x = 1
    raise RuntimeError("no such file: weights.npy\\nsecond line")

def quits():
    raise SystemExit(4)

def wrong():
    return {"a": 1}

def nan():
    net = Net()
    net.fc.bias.data.fill_(float("nan"))
    return net

instance = Net(7)
number = 3
"""


@pytest.fixture
def net(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(NET)
    return file


@pytest.fixture
def relu(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save_model(helper.make_model(graph), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def refused(reference, weights=None, kind=ModelError):
    with pytest.raises(kind) as caught:
        open_model(str(reference), weights)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_onnx_file_is_opened_and_hashed(relu):
    source = open_model(str(relu))
    assert (source.kind, source.path, source.module, source.user_code) == ("onnx", relu, None, None)
    before = source.sha256
    assert open_model(str(relu)).sha256 == before
    relu.write_bytes(relu.read_bytes().replace(b"Relu", b"Tanh"))
    assert open_model(str(relu)).sha256 != before


def test_external_data_belongs_to_the_hash(tmp_path):
    data = tmp_path / "w.bin"
    data.write_bytes(bytes(12))
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=1)
    weight.external_data.add(key="location", value="w.bin")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [weight],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    before = open_model(str(path)).sha256
    data.write_bytes(b"\x00" * 11 + b"\x01")
    assert open_model(str(path)).sha256 != before


def bundle(relu, folder, user_code=None):
    folder.mkdir()
    (folder / "model.onnx").write_bytes(relu.read_bytes())
    manifest = Manifest(
        edgeml_version="0", created="2026-01-01", name="relu", recipe={}, data={}, seed=0,
        model={"kind": "torch", "reference": "net.py:build", "user_code": user_code}, tools={},
        machine={}, inputs=[], outputs=[], engines=[], shipped=None,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def test_a_bundle_is_its_float_onnx_file(relu, tmp_path):
    source = open_model(str(bundle(relu, tmp_path / "b")))
    assert (source.kind, source.path) == ("onnx", tmp_path / "b" / "model.onnx")
    assert source.sha256 == open_model(str(relu)).sha256
    assert "carries its own" in refused(tmp_path / "b", tmp_path / "w.safetensors")


def test_a_bundle_that_names_user_code_needs_trust(relu, tmp_path):
    code = {"file": "net.py", "text": "raise SystemExit", "sha256": "0"}
    path = bundle(relu, tmp_path / "b", code)
    assert "--trust-code" in refused(path, kind=BundleError)
    assert open_model(str(path), trust_code=True).user_code is None


def test_a_damaged_bundle_and_a_directory_that_is_none_are_refused(relu, tmp_path):
    path = bundle(relu, tmp_path / "b")
    (path / "model.onnx").write_bytes(b"other")
    assert "does not match its hash" in refused(path, kind=BundleError)
    assert "no bundle" in refused(tmp_path, kind=BundleError)


def test_a_factory_builds_a_module_in_eval_mode_and_its_code_is_kept(net, capsys):
    source = open_model(f"{net}:build")
    assert source.kind == "torch" and not source.module.training
    assert source.module(torch.zeros(1, 3)).shape == (1, 4)
    assert source.user_code["file"] == "net.py" and source.user_code["text"] == NET
    assert capsys.readouterr().out == ""
    assert str(net.parent) not in sys.path


def test_random_first_weights_are_the_same_in_every_run(net):
    random = torch.random.get_rng_state()
    first, second = open_model(f"{net}:build"), open_model(f"{net}:Net")
    assert torch.equal(first.module.fc.weight, second.module.fc.weight)
    assert first.sha256 == open_model(f"{net}:build").sha256
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_module_that_is_there_already_is_taken(net):
    assert open_model(f"{net}:instance").module.fc.out_features == 7


def test_weights_and_source_change_the_hash(net, tmp_path):
    before = open_model(f"{net}:build").sha256
    weights = {"fc.weight": torch.ones(4, 3), "fc.bias": torch.ones(4)}
    save_file(weights, tmp_path / "w.safetensors")
    loaded = open_model(f"{net}:build", tmp_path / "w.safetensors")
    assert torch.equal(loaded.module.fc.bias, torch.ones(4))
    assert loaded.sha256 != before
    net.write_text(NET.replace("return self.fc(x)", "return -self.fc(x)"))
    assert open_model(f"{net}:build").sha256 != before


def test_a_neighbouring_file_can_be_imported_and_belongs_to_the_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "edgeml_test_part.py").write_text("WIDTH = 4\n")
    file = tmp_path / "net2.py"
    file.write_text(NET + "\nimport edgeml_test_part\n")
    before = open_model(f"{file}:build").sha256
    (tmp_path / "edgeml_test_part.py").write_text("WIDTH = 5\n")
    assert open_model(f"{file}:build").sha256 != before
    monkeypatch.delitem(sys.modules, "edgeml_test_part")


def test_an_importable_module_is_opened_by_name(net, tmp_path, monkeypatch):
    net.rename(tmp_path / "edgeml_test_net.py")
    monkeypatch.chdir(tmp_path)
    source = open_model("edgeml_test_net:build")
    assert source.user_code["file"] == "edgeml_test_net.py"
    monkeypatch.delitem(sys.modules, "edgeml_test_net")
    assert "no Python module edgeml_no_such" in refused("edgeml_no_such:build")


def test_what_a_factory_does_wrong_is_named_with_its_line(net):
    line = NET.splitlines().index(
        '    raise RuntimeError("no such file: weights.npy\\nsecond line")'
    )
    assert f"net.py:{line + 1} raised RuntimeError: no such file" in refused(f"{net}:fails")
    assert "SystemExit: 4" in refused(f"{net}:quits")
    assert "needs arguments (width)" in refused(f"{net}:needs")
    assert "returned a dict; it must return a torch.nn.Module" in refused(f"{net}:wrong")
    assert "is an int; name a function" in refused(f"{net}:number")
    assert "did you mean build?" in refused(f"{net}:biuld")
    assert "fc.bias (4 of 4)" in refused(f"{net}:nan")


def test_a_file_that_does_not_run_is_named_with_its_line(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("x = 1\ndef build(:\n")
    assert "bad.py:2 raised SyntaxError" in refused(f"{file}:build")
    file.write_text("x = 1\nimport no_such_library_here\n")
    assert "bad.py:2 raised ModuleNotFoundError" in refused(f"{file}:build")
    file.write_text("")
    assert "is empty" in refused(f"{file}:build")
    file.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused(f"{file}:build")
    assert "no file" in refused(f"{tmp_path / 'none.py'}:build")
    assert "names no factory" in refused(file)


def test_references_of_no_known_form_list_the_forms(tmp_path, net):
    for reference in ("model.tflite", "nothing", "a b:c", ""):
        assert "model.onnx, file.py:factory" in refused(tmp_path / reference if reference else "")
    text = tmp_path / "model.txt"
    text.write_text("hello")
    assert "no model that can be opened" in refused(text)
    assert "weights alone are no model" in refused("w.safetensors")
    assert "no such directory" in refused("hf:./none")


def test_onnx_takes_no_weights_and_damage_is_refused(relu, tmp_path):
    assert "carries its own" in refused(relu, tmp_path / "w.safetensors")
    relu.write_bytes(relu.read_bytes()[:-4])
    assert "cut short" in refused(relu)
    assert "no ONNX file" in refused(tmp_path / "none.onnx")


def test_weights_that_do_not_fit_are_refused(net, tmp_path):
    save_file({"fc.weight": torch.ones(5, 3)}, tmp_path / "w.safetensors")
    assert "fc.weight has shape 5×3, the model's is 4×3" in refused(
        f"{net}:build", tmp_path / "w.safetensors"
    )
    assert "must be .safetensors" in refused(f"{net}:build", tmp_path / "w.pth")


def test_zoo_names_open_without_user_code():
    source = open_model("zoo:resnet20")
    assert source.user_code is None
    assert source.module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert "did you mean resnet44?" in refused("zoo:resnet4")


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_timm_names_need_timm():
    assert "pip install -c constraints.txt timm" in refused("timm:resnet18", kind=MissingPart)
