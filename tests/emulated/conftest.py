"""The emulated device, built once a session; one that cannot be built fails the tests, it never skips them."""

from __future__ import annotations

import pytest

from .emulated_jetson import CannotBuild, Device, emulated_jetson


@pytest.fixture(scope="session")
def device(tmp_path_factory) -> Device:
    try:
        with emulated_jetson(tmp_path_factory.mktemp("emulated")) as found:
            yield found
    except CannotBuild as e:
        pytest.fail(f"the emulated Jetson cannot be built: {e}", pytrace=False)
