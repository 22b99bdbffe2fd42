"""torch as a baseline: types, torch.compile, AOTInductor; CUDA as far as a machine without it tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgeml.errors import BuildError, EdgemlError, MissingPart
from edgeml.runtime import torch_engine
from edgeml.runtime.device.cuda_runtime import OutOfGpuMemory
from edgeml.runtime.engine import EngineOptions
from edgeml.runtime.torch_engine import TorchEngine

X = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x):
        return torch.relu(self.fc(x))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


@pytest.mark.parametrize("execution", ["bf16", "fp16"])
def test_lower_types_give_float32_and_leave_the_callers_module(small, execution):
    with (
        TorchEngine(small, X) as exact,
        TorchEngine(small, X, options=EngineOptions(execution=execution)) as engine,
    ):
        found = engine.run(X)["output"]
        assert found.dtype == np.float32 and engine.input_specs[0].dtype == "float32"
        np.testing.assert_allclose(found, exact.run(X)["output"], atol=0.02)
        assert not np.array_equal(found, exact.run(X)["output"])
    assert small.fc.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("mode", ["compile", "aoti"])
def test_compiled_engines_compute_the_same(small, mode):
    with TorchEngine(small, X) as eager, TorchEngine(small, X, mode=mode) as engine:
        np.testing.assert_allclose(engine.run(X)["output"], eager.run(X)["output"], atol=1e-5)


def test_what_cannot_be_compiled_is_told(small, monkeypatch):
    def fail(module, **options):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nmore")

    monkeypatch.setattr(torch_engine.torch, "compile", fail)
    with pytest.raises(
        BuildError, match=r"by compile: InvalidCxxCompiler: no working C\+\+ compiler$"
    ):
        TorchEngine(small, X, mode="compile")


def test_without_a_gpu_it_says_so(small):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingPart, match="sees no CUDA GPU here"):
        TorchEngine(small, X, device="cuda")
    with TorchEngine(small, X) as engine:
        assert engine.device == "cpu" and engine.gpu_times_ms(X) is None
        assert engine.gpu_memory_bytes() is None


def test_out_of_gpu_memory_is_ours(small, monkeypatch):
    def full(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nhint")

    monkeypatch.setattr(Small, "forward", full)
    with pytest.raises(OutOfGpuMemory, match=r"Tried to allocate 2\.00 GiB\.$") as told:
        TorchEngine(small, X)
    assert isinstance(told.value, EdgemlError) and told.value.exit_code == 1


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "compile", "aoti"])
@pytest.mark.parametrize("execution", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_parts_are_timed(small, mode, execution):
    options = EngineOptions(execution=execution)
    with TorchEngine(small, X, options=options, device="cuda", mode=mode) as engine:
        times = engine.gpu_times_ms(X)
        assert times["compute"] > 0 and times["host"] >= times["compute"]
        with TorchEngine(small, X) as exact:
            np.testing.assert_allclose(engine.run(X)["output"], exact.run(X)["output"], atol=0.05)
