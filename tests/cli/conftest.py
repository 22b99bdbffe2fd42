"""A folder of things a user may give, good and broken, and the command line run on them in-process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.cli import main
from onnx import TensorProto, helper
from PIL import Image

PROGRESS = re.compile(r"\[ *\d+\.\d s\] ")


@dataclass(frozen=True)
class Run:
    """What one command gave: `progress` are the lines of stderr that tell of work, `said` the others."""

    code: int
    stdout: str
    progress: list[str]
    said: list[str]


def split_stderr(text: str) -> tuple[list[str], list[str]]:
    """Progress lines and the others, without what the users' own code in `user_files` prints."""
    lines = [line for line in text.splitlines() if line and not line.endswith("prints")]
    progress = [line for line in lines if PROGRESS.match(line)]
    return progress, [line for line in lines if not PROGRESS.match(line)]


@pytest.fixture
def edgeml(capsys) -> Callable[..., Run]:
    """``edgeml("bench", "out")``: runs the command in this process."""

    def run(*args: object) -> Run:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Run(ended.value.code, out, *split_stderr(err))

    return run


@pytest.fixture(scope="session")
def _cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli-cache")


@pytest.fixture(autouse=True)
def _own_cache(_cache, monkeypatch):
    """Never the user's; shared, so that what one test quantized another takes from it."""
    monkeypatch.setenv("EDGEML_CACHE", str(_cache))


@pytest.fixture
def quick(monkeypatch):
    """Runs of the whole way time engines for a moment only."""
    monkeypatch.setattr("edgeml.compress.search.SCREEN_SECONDS", 0.05)
    monkeypatch.setattr("edgeml.compress.search.BENCH_SECONDS", 0.1)
    monkeypatch.setattr("edgeml.runtime.latency.BLOCK_S", 0.006)


@pytest.fixture
def inside(things, monkeypatch) -> Path:
    """The folder of `things` as the working directory."""
    monkeypatch.chdir(things)
    return things


@pytest.fixture(scope="session")
def things(tmp_path_factory, conv_onnx, save_graph) -> Path:
    root = tmp_path_factory.mktemp("things")
    (root / "net.onnx").write_bytes(conv_onnx.read_bytes())
    arrays(root)
    graphs(root, save_graph)
    images(root)
    tables_and_recipes(root)
    (root / "net.py").write_text(NET)
    (root / "task.py").write_text(TASK)
    (root / "samples.py").write_text(SAMPLES)
    (root / "syntax.py").write_text("def build(:\n")
    (root / "lacks.py").write_text("import nosuchmodule\n")
    (root / "empty.py").write_text("")
    weights(root)
    (root / "taken").mkdir()
    (root / "file").write_text("")
    (root / "foreign.part").mkdir()
    (root / "foreign.part" / "keep.txt").write_text("mine")
    (root / "link").symlink_to("nowhere")
    (root / "no-bundle").mkdir()
    return root


def arrays(root: Path) -> None:
    """Samples labelled by the network's own answers, and every way to get that wrong."""
    import onnxruntime

    rng = np.random.default_rng(1)
    # An offset a channel: plain noise pools to the same features, and so to one class.
    x = rng.standard_normal((400, 3, 16, 16)) + 2 * rng.standard_normal((400, 3, 1, 1))
    x = x.astype(np.float32)
    session = onnxruntime.InferenceSession(root / "net.onnx", providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0].argmax(1)
    for name, fields in {
        "good": {"x": x, "y": y},
        "one": {"x": x, "y": np.zeros(400, int)},
        "range": {"x": x, "y": np.where(np.arange(400) == 3, 9, y)},
        "order": {"x": x, "y": np.array([2, 3, 1, 0])[y]},
        "none": {"x": x[:0], "y": y[:0]},
        "gray": {"x": x[:, :1], "y": y},
        "small": {"x": x[:, :, :12, :12], "y": y},
        "bytes": {"x": x.astype(np.uint8), "y": y},
        "nan": {
            "x": np.where(np.arange(400)[:, None, None, None] == 5, np.float32("nan"), x),
            "y": y,
        },
        "keys": {"a": x, "b": y},
        "short": {"x": x, "y": y[:10]},
    }.items():
        np.savez(root / f"{name}.npz", **fields)
    (root / "junk.npz").write_bytes(b"junk" * 99)
    (root / "cut.npz").write_bytes((root / "good.npz").read_bytes()[:5000])


def graphs(root: Path, save_graph) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((768, 4)).astype(np.float32)
    X, Y = ("x", ["batch", 3, 16, 16]), ("y", ["batch", 4])
    flat = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]

    def after(op: str, domain: str = "") -> list:
        return [helper.make_node(op, ["x"], ["r"], domain=domain), *renamed(flat, "x", "r")]

    save_graph(root / "unranked.onnx", flat, [("x", None)], [Y], [("w", w)])
    save_graph(root / "clash.onnx", flat, [X], [Y], [("w", w[:700])])
    save_graph(root / "batch8.onnx", flat, [("x", [8, 3, 16, 16])], [("y", [8, 4])], [("w", w)])
    save_graph(root / "gray.onnx", flat, [("x", ["b", 1, 16, 16])], [Y], [("w", w[:256])])
    save_graph(root / "single.onnx", flat, [X], [("y", ["b", 1])], [("w", w[:, :1].copy())])
    nan = w.copy()
    nan[0, 0] = np.nan
    save_graph(root / "nan.onnx", flat, [X], [Y], [("w", nan)])
    two = [helper.make_node("Add", ["x", "z"], ["r"]), *renamed(flat, "x", "r")]
    save_graph(root / "two.onnx", two, [X, ("z", X[1])], [Y], [("w", w)])
    pool = [helper.make_node("GlobalAveragePool", ["x"], ["r"]), *renamed(flat, "x", "r")]
    save_graph(root / "open.onnx", pool, [("x", ["b", "c", "h", "w"])], [Y], [("w", w[:3])])
    save_graph(root / "unknown-op.onnx", after("Foo"), [X], [Y], [("w", w)])
    unpool = [
        helper.make_node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["p", "i"], ["r"], kernel_shape=[2, 2], strides=[2, 2]),
        *renamed(flat, "x", "r"),
    ]
    save_graph(root / "unpool.onnx", unpool, [X], [Y], [("w", w)])
    foreign = onnx.load(
        save_graph(root / "foreign-op.onnx", after("Foo", "mine"), [X], [Y], [("w", w)])
    )
    foreign.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(foreign, root / "foreign-op.onnx")
    whole = (root / "net.onnx").read_bytes()
    (root / "zero.onnx").write_bytes(b"")
    (root / "cut.onnx").write_bytes(whole[:1500])
    (root / "junk.onnx").write_bytes(b"\0hello" * 99)
    (root / "secret.bin").write_bytes(bytes(100_000))
    (root / "apart").mkdir()
    for name, place in (("outside", "../secret.bin"), ("gone", "gone.bin")):
        model = onnx.load(root / "net.onnx")
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        (root / "apart" / f"{name}.onnx").write_bytes(model.SerializeToString())


def renamed(nodes: list, old: str, new: str) -> list:
    """Copies of `nodes` that read `new` instead of `old`."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [new if name == old else name for name in copy.input]
        copies.append(copy)
    return copies


def images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("photos", "damaged"):
        for k in range(4):
            (root / folder / f"c{k}").mkdir(parents=True)
            for i in range(15):
                pixels = rng.integers(0, 80, (20, 20, 3), dtype=np.uint8) + np.uint8(40 * k)
                Image.fromarray(pixels).save(root / folder / f"c{k}" / f"{i}.png")
    (root / "damaged/c1/7.png").write_bytes(b"no image")
    cut = root / "damaged/c2/3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    for k in range(3):
        (root / "three" / f"c{k}").mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (20, 20), (i, k, 0)).save(root / "three" / f"c{k}" / f"{i}.png")
    (root / "no-image" / "c0").mkdir(parents=True)
    (root / "all-bad" / "c0").mkdir(parents=True)
    for k in range(4):
        (root / "all-bad" / f"c{k}").mkdir(exist_ok=True)
        (root / "all-bad" / f"c{k}" / "1.png").write_bytes(b"junk")


def tables_and_recipes(root: Path) -> None:
    rows = [f"photos/c{k}/{i}.png,c{k}" for k in range(4) for i in range(15)]
    for name, lines in {
        "columns": ["path,class", *rows],
        "head": ["file,label"],
        "gone": ["file,label", *rows, "photos/c0/none.png,c0"],
    }.items():
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (root / "zero.csv").write_bytes(b"")
    good = "model: net.onnx\ndata: npz:good.npz\n"
    for name, text in {
        "broken": "a: [1, 2\nb",
        "list": "- 1\n",
        "zero": "",
        "word": "modle: net.onnx\n",
        "type": f"{good}batch: many\n",
        "later": "version: 9\nmodel: net.onnx\n",
        "steps": f"{good}steps: hello\n",
        "prune": f"{good}steps: [{{step: prune}}]\n",
        "twice": f"{good}steps: [{{step: quantize}}, {{step: quantize}}]\n",
        "order": f"{good}steps: [{{step: quantize}}, {{step: prune}}]\n",
        "steep": f"{good}latency: 150%\n",
        "precisions": f"{good}precisions: int8\n",
    }.items():
        (root / f"{name}.yaml").write_text(text)
    (root / "how.json").write_text('{"resise": 3}')


def weights(root: Path) -> None:
    from safetensors.numpy import save_file

    zeros = {"fc.weight": (4, 3), "fc.bias": (4,)}
    good = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    save_file({f"layer{i}.weight": np.zeros(3, np.float32) for i in range(9)}, root / "other.st")
    for name, tensors in {
        "good": good,
        "shapes": {**good, "fc.weight": np.zeros((5, 3), np.float32)},
        "names": {f"model.{key}": value for key, value in good.items()},
        "nan": {**good, "fc.bias": np.full(4, np.nan, np.float32)},
    }.items():
        save_file(tensors, root / f"{name}.safetensors")
    (root / "other.st").rename(root / "other.safetensors")
    whole = (root / "good.safetensors").read_bytes()
    (root / "zero.safetensors").write_bytes(b"")
    (root / "cut.safetensors").write_bytes(whole[:60])
    (root / "weights.pt").write_bytes(b"PK")


NET = """
import torch
print("net.py prints")
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 4)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))
class Fails(Net):
    def forward(self, x):
        raise RuntimeError("not today")
class Infinite(Net):
    def forward(self, x):
        return super().forward(x) / 0
class Empty(torch.nn.Module):
    def forward(self):
        return torch.zeros(1)
class Narrow(Net):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)
    def forward(self, x):
        return super().forward(self.conv(x))
def build():
    print("build prints")
    return Net()
def raises():
    raise ValueError("boom\\nsecond line")
def leaves():
    raise SystemExit(3)
def nothing():
    pass
def needs(width):
    return Net()
def nan():
    net = Net()
    net.fc.bias.data[0] = float("nan")
    return net
number = 3
"""

TASK = """
import numpy as np
with np.load("good.npz") as file:
    data = dict(file)
class Good:
    primary, lower_is_better = "right", False
    def samples(self, split):
        print("samples prints")
        first = {"train": 0, "validation": 100, "test": 200}[split]
        for i in range(first, first + 60):
            print("each sample prints")
            yield {"x": data["x"][i]}, int(data["y"][i])
    def score(self, outputs, targets):
        print("score prints")
        answers = [next(iter(o.values())).argmax() for o in outputs]
        return {"right": float(np.mean(np.array(answers) == targets))}
class NoScore:
    primary, lower_is_better, samples = "right", False, Good.samples
class NoSamples:
    primary, lower_is_better, score = "right", False, Good.score
class NoPrimary:
    samples, score = Good.samples, Good.score
class Raises(Good):
    def score(self, outputs, targets): raise KeyError("cer")
class Leaves(Good):
    def score(self, outputs, targets): raise SystemExit(5)
class NotANumber(Good):
    def score(self, outputs, targets): return {"right": float("nan")}
class Text(Good):
    def score(self, outputs, targets): return {"right": "good"}
class Other(Good):
    def score(self, outputs, targets): return {"wrong": 1.0}
class NoFile(Good):
    def samples(self, split): return open("gone.npz")
class Late(Good):
    def samples(self, split):
        for i, sample in enumerate(super().samples(split)):
            if split == "validation" and i == 20: raise ValueError("late")
            yield sample
class TrainRaises(Good):
    def samples(self, split):
        if split == "train": raise ValueError("no train here")
        yield from super().samples(split)
class NoTrain(Good):
    def samples(self, split):
        if split != "train": yield from super().samples(split)
class NoTest(Good):
    def samples(self, split):
        if split != "test": yield from super().samples(split)
class Nothing(Good):
    def samples(self, split): return None
class Named(Good):
    def samples(self, split): return (({"image": i["x"]}, t) for i, t in super(Named, self).samples(split))
class Batched(Good):
    def samples(self, split): return (({"x": i["x"][None]}, t) for i, t in super(Batched, self).samples(split))
class Double(Good):
    def samples(self, split): return (({"x": i["x"].astype("f8")}, t) for i, t in super(Double, self).samples(split))
class Bare(Good):
    def samples(self, split): return (i["x"] for i, t in super(Bare, self).samples(split))
class Empty(Good):
    def samples(self, split): return (({"x": i["x"] * np.nan}, t) for i, t in super(Empty, self).samples(split))
class InitRaises(Good):
    def __init__(self): raise RuntimeError("init")
"""

SAMPLES = """
def raises():
    raise OSError("disk on fire")
def number():
    return 3
"""
