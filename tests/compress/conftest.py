"""A small network and its data, made once: every run of the whole way in these tests uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeml.artifact.stage_cache import StageCache
from onnx import TensorProto, helper, numpy_helper


def small_network(path: Path, classes: int = 4) -> Path:
    """conv-relu-conv-relu-pool-dense on ``x [batch, 3, 16, 16]``."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((16, 3, 3, 3)) * 0.3,
        "w2": rng.standard_normal((16, 16, 3, 3)) * 0.1,
        "w3": rng.standard_normal((16, classes)) * 0.5,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def samples(n: int) -> np.ndarray:
    """Noise with an offset a channel: plain noise pools to the same features, and so to one class."""
    rng = np.random.default_rng(1)
    offsets = 2 * rng.standard_normal((n, 3, 1, 1))
    return (rng.standard_normal((n, 3, 16, 16)) + offsets).astype(np.float32)


def answers(network: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].argmax(1)


@pytest.fixture(scope="module", autouse=True)
def short_blocks():
    """Whole runs time their engines for a moment only; a module's own fixtures do so, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeml.runtime.latency.BLOCK_S", 0.006)
        patch.setattr("edgeml.compress.search.SCREEN_SECONDS", 0.02)
        for bench in ("search", "steer_run"):
            patch.setattr(f"edgeml.compress.{bench}.BENCH_SECONDS", 0.05)
        yield


@pytest.fixture(scope="session")
def draw():
    """`samples`, for tests that want their own number of them."""
    return samples


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> dict[str, str]:
    """``model``: the ONNX file; ``data``: 900 samples labelled by its own answers."""
    folder = tmp_path_factory.mktemp("small")
    network = small_network(folder / "small.onnx")
    x = samples(900)
    np.savez(folder / "data.npz", x=x, y=answers(network, x))
    return {"model": str(network), "data": f"npz:{folder / 'data.npz'}"}


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> StageCache:
    """Shared, as a user's is: what one test quantized, another takes from it."""
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def fresh_cache(tmp_path) -> StageCache:
    return StageCache(tmp_path / "cache")


@pytest.fixture(scope="session")
def trained_on_colours():
    """A function: a folder, the text of a ``net.py`` with a ``build()``, how many samples and steps → the words of
    `compress` for that network, trained so far on three colours of noise, and its data."""

    def make(folder: Path, text: str, n: int, steps: int) -> dict[str, str]:
        import torch
        from safetensors.torch import save_file

        (folder / "net.py").write_text(text)
        space: dict = {}
        exec(text, space)
        net = space["build"]()
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, n)
        x = rng.standard_normal((n, 3, 8, 8)).astype(np.float32)
        x += np.eye(3, dtype=np.float32)[y][:, :, None, None]
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        save_file(net.state_dict(), folder / "w.safetensors")
        np.savez(folder / "data.npz", x=x, y=y)
        return {
            "model": f"{folder / 'net.py'}:build",
            "weights": str(folder / "w.safetensors"),
            "data": f"npz:{folder / 'data.npz'}",
        }

    return make
