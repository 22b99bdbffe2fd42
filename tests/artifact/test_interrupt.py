"""A Ctrl-C that a library swallows still ends the run before its next stage."""

import contextlib
import os
import signal

import pytest
from edgeml.artifact.interrupt import listen_for_interrupt, raise_if_interrupted
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress.stages import Stages


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    listen_for_interrupt()
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    listen_for_interrupt()
    signal.signal(signal.SIGINT, before)


def test_a_swallowed_interrupt_ends_the_run_before_the_next_stage(listening, tmp_path):
    def swallows(directory):
        with contextlib.suppress(BaseException):  # as `__del__` and C++ callbacks do
            os.kill(os.getpid(), signal.SIGINT)

    with WorkDirectory(tmp_path / "out", "recipe") as work:
        stages = Stages(StageCache(tmp_path / "cache"), work, lambda line: None, None)
        stages.run("one", {}, "one", swallows)
        with pytest.raises(KeyboardInterrupt):
            stages.run("two", {}, "two", lambda directory: None)


def test_a_handler_of_the_callers_own_stays():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        listen_for_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        raise_if_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
