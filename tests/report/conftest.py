"""A made sweep, and the browser that its page is looked at with."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "report_page.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def made_sweep():
    """`benchmarks/report_page.py`'s function that writes a sweep of made trials."""
    return runpy.run_path(str(BENCHMARK))["made_sweep"]


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, driven by Playwright; skipped where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()
