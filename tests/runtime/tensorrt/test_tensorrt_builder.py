"""The builder against NVIDIA's own parser and builder (TensorRT-RTX, which needs no GPU), and flags by version."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from edgeml.errors import BuildError, InputError, MissingPart
from edgeml.runtime.device.tensorrt_builder import build_plan
from edgeml.runtime.device.tensorrt_runner import TensorRTRunner, import_tensorrt
from onnx import helper

RTX = {"module": "tensorrt_rtx", "capability": "SM89"}


@pytest.fixture(scope="module", autouse=True)
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def test_it_builds_with_an_open_batch(conv_onnx, tmp_path):
    said = []
    built = build_plan(str(conv_onnx), str(tmp_path / "p"), log=said.append, **RTX)
    assert built.open_axes and built.layers >= 4 and built.size_bytes > 1000
    assert built.size_bytes == (tmp_path / "p").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_profiles_and_a_timing_cache_that_rtx_has_none_of(conv_onnx, tmp_path):
    shapes = {"x": ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))}
    cache = tmp_path / "timing.cache"
    for _ in range(2):
        options = {"profiles": shapes, "timing_cache": str(cache), "workspace_bytes": 1 << 26}
        build_plan(str(conv_onnx), str(tmp_path / "p"), **options, **RTX)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ({"z": ((1,), (1,), (1,))}, "no input 'z'"),
        ({"x": ((4, 3, 16, 16), (2, 3, 16, 16), (8, 3, 16, 16))}, "1 ≤ min ≤ opt ≤ max"),
        ({"x": ((1, 3, 8, 16), (1, 3, 8, 16), (1, 3, 8, 16))}, "fixed axes stay"),
        ({"x": ((1, 3), (1, 3), (1, 3))}, "has 4 axes"),
    ],
)
def test_profiles_that_do_not_fit(conv_onnx, tmp_path, profiles, said):
    with pytest.raises(InputError, match=said):
        build_plan(str(conv_onnx), str(tmp_path / "p"), profiles=profiles, **RTX)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_the_parser_refuses(save_graph, tmp_path):
    node = helper.make_node("Foo", ["x"], ["y"], name="odd", domain="mine")
    path = save_graph(tmp_path / "foo.onnx", [node], [("x", [1, 3])], [("y", [1, 3])])
    with pytest.raises(BuildError, match=r"cannot read .*foo\.onnx: "):
        build_plan(str(path), str(tmp_path / "p"), **RTX)


def test_the_real_library_without_a_gpu_is_refused_in_one_line(conv_onnx, tmp_path):
    build_plan(str(conv_onnx), str(tmp_path / "p"), **RTX)
    try:
        TensorRTRunner((tmp_path / "p").read_bytes(), "tensorrt_rtx").close()
    except MissingPart as e:
        assert "CUDA" in str(e) or "GPU" in str(e) or "driver" in str(e)
    except InputError as e:  # a GPU of another architecture
        assert "does not take this plan" in str(e)


def test_a_library_that_is_not_there():
    with pytest.raises(MissingPart, match=r"nonesuch does not import here .*pip install"):
        import_tensorrt("nonesuch")


class Recorder:
    """A made `tensorrt` of some version that notes the flags of a build."""

    __name__ = "tensorrt"
    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=3)
    BuilderFlag = SimpleNamespace(FP16="FP16", INT8="INT8")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, version):
        self.__version__, self.flags, self.created, self.memory = version, [], None, {}

    def Builder(self, logger):
        network = SimpleNamespace(
            num_inputs=1, num_layers=2, get_input=lambda i: SimpleNamespace(name="x", shape=(1, 3))
        )
        cache = SimpleNamespace(serialize=lambda: b"timing")
        config = SimpleNamespace(
            set_flag=self.flags.append,
            set_memory_pool_limit=self.memory.__setitem__,
            create_timing_cache=lambda data: self.memory.setdefault("cache", data),
            set_timing_cache=lambda cache, ignore: True,
            get_timing_cache=lambda: cache,
        )

        def create(flags):
            self.created = flags
            return network

        return SimpleNamespace(
            create_network=create,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: None,
            build_serialized_network=lambda network, config: b"plan",
        )

    def OnnxParser(self, network, logger):
        return SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)


@pytest.mark.parametrize(
    ("version", "flags", "created"),
    [("8.6.2", ["FP16", "INT8"], 1), ("10.3.0", [], 8), ("11.4.1", [], 8)],
)
def test_typing_follows_the_version(tmp_path, version, flags, created):
    trt, cache = Recorder(version), tmp_path / "timing.cache"
    cache.write_bytes(b"old")
    options = {"int8": True, "fp16": True, "workspace_bytes": 5, "timing_cache": str(cache)}
    built = build_plan("m.onnx", str(tmp_path / "p"), module=trt, **options)
    assert (trt.flags, trt.created, trt.memory["workspace"]) == (flags, created, 5)
    assert trt.memory["cache"] == b"old" and cache.read_bytes() == b"timing"
    assert (tmp_path / "p").read_bytes() == b"plan" and built.version == version


def test_a_version_without_a_row_is_refused(tmp_path):
    with pytest.raises(InputError, match="too old"):
        build_plan("m.onnx", str(tmp_path / "p"), module=Recorder("8.2.1"))
