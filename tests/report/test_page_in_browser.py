"""The page as a reader uses it, in a real browser: hover, axes, hold, sort, filter, dark, keyboard."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest
from edgeml.report.open_results import shown_of
from edgeml.report.page_files import write_page

READY = "html[data-drawn='yes']"
POINTS = "#pareto .scatterlayer .points path.point"


@pytest.fixture(scope="module")
def page_file(made_sweep, tmp_path_factory):
    """The page of a sweep of 24 made trials, with two points of its front."""
    root = tmp_path_factory.mktemp("page")
    sweep = made_sweep(root / "sweep", trials=24, seed=3, points=2)
    return write_page([shown_of(sweep)], root / "page")[0]


@pytest.fixture(scope="module")
def comparison_file(made_sweep, tmp_path_factory):
    """The page of two made bundles: what changed, and every part that a bundle has."""
    root = tmp_path_factory.mktemp("comparison")
    sweep = made_sweep(root / "sweep", trials=24, seed=3, points=2)
    bundles = sorted((sweep / "points").iterdir())
    return write_page([shown_of(path) for path in bundles], root / "page")[0]


@contextmanager
def opened(browser, file, **options):
    """A new browser context with the page drawn; whatever it said or asked for is a failure."""
    options = {"viewport": {"width": 1300, "height": 1000}, "color_scheme": "light", **options}
    context = browser.new_context(**options)
    said: list[str] = []
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on(
        "request",
        lambda request: request.url != file.as_uri() and said.append(f"asked for {request.url}"),
    )
    page.goto(file.as_uri())
    page.wait_for_selector(READY, state="attached")
    try:
        yield page
        # A blob that is saved from memory is no request to any network.
        assert [line for line in said if "blob:" not in line] == []
    finally:
        context.close()


@pytest.fixture
def page(browser, page_file):
    with opened(browser, page_file) as found:
        yield found


@pytest.fixture(scope="module")
def shared_page(browser, page_file):
    """One page for tests that leave to the others all that those look at."""
    with opened(browser, page_file) as found:
        yield found


def raw(page, index: int = 0) -> dict:
    return json.loads(page.locator(f"#raw-{index}").text_content())


def middle(point) -> tuple[float, float]:
    box = point.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def first_column(page) -> list[str]:
    """Ids of the visible rows, in their order."""
    return page.evaluate(
        "() => [...document.querySelector('table.rows').tBodies[0].rows]"
        ".filter((row) => !row.hidden).map((row) => row.dataset.id)"
    )


def test_every_drawn_point_is_the_jsons_and_the_front_is_marked(shared_page):
    page = shared_page
    rows = {row["id"]: row for row in raw(page)["rows"]}
    points = json.loads(page.locator("#chart-data").text_content())["points"]
    drawn = page.evaluate(
        "() => document.getElementById('pareto').data.filter((t) => t.customdata)"
        ".flatMap((t) => t.customdata.map((index, i) => [index, t.x[i], t.y[i], t.marker.symbol]))"
    )
    assert len(drawn) == sum(row["status"] != "failed" for row in rows.values()) == 28
    for index, x, y, symbol in drawn:
        row = rows[points[index]["id"]]
        assert x == row["speedup"]["value"]
        assert y == (0 if row["status"] == "reference" else row["change_points"]["value"])
        want = {"yes": "triangle-up", "cannot tell": "triangle-up-open"}.get(row["front"])
        want = want or ("square" if row["baseline"] else "circle")
        assert symbol == ("diamond" if row["status"] == "reference" else want)
    assert {symbol for *_, symbol in drawn} >= {"triangle-up", "square", "diamond", "circle"}


def test_hovering_a_point_tells_its_figures_and_its_recipe(shared_page):
    page = shared_page
    page.locator("#pareto").scroll_into_view_if_needed()
    point = page.locator(POINTS).last
    page.mouse.move(*middle(point))
    text = page.locator("#pareto .hoverlayer .hovertext").first
    text.wait_for()
    said = text.text_content()
    assert "speed-up over the reference, ×:" in said and "change of accuracy" in said


def test_the_hovered_text_holds_recipe_and_front(shared_page):
    """Of every point, without moving the mouse to each."""
    page = shared_page
    texts = page.evaluate(
        "() => document.getElementById('pareto').data.filter((t) => t.customdata).flatMap((t) => t.text)"
    )
    assert sum("on the front" in text for text in texts) >= 2
    assert sum("dominated by trial" in text for text in texts) >= 2
    assert any("pruned to" in text and "distilled" in text for text in texts)


def test_other_axes_can_be_chosen_and_what_they_lack_is_told(page):
    assert page.locator("#axis-x option:checked").text_content() == "speed-up over the reference, ×"
    page.select_option("#axis-x", label="size of the engine's files, MB")
    page.select_option("#axis-y", label="latency p99, ms")
    assert page.locator("#pareto .xtitle").text_content() == "size of the engine's files, MB"
    assert page.locator("#pareto .ytitle").text_content() == "latency p99, ms"
    together = [
        row for row in raw(page)["rows"] if row["latency_p99_ms"] and row["timed"] == "together"
    ]
    assert page.locator(POINTS).count() == len(together)
    assert "Not measured on these axes" in page.locator("#absent").text_content()
    page.check("#log-x")
    assert page.evaluate("() => document.getElementById('pareto').layout.xaxis.type") == "log"


def test_two_points_are_held_side_by_side_and_a_third_takes_the_firsts_place(page):
    page.locator("#pareto").scroll_into_view_if_needed()
    page.mouse.click(
        *middle(page.locator("#pareto .scatterlayer .trace").last.locator("path.point").first)
    )
    held = page.locator("#held")
    assert "press another point" in held.text_content()
    assert page.locator("button.hold[aria-pressed='true']").count() == 1
    buttons = page.locator("button.hold[aria-pressed='false']")
    buttons.nth(0).click()
    assert held.locator("tr").first.locator("th").count() == 3
    assert "Held, side by side" in held.text_content()
    told = held.locator("tr", has_text="speed-up").text_content()
    assert re.search(r"told apart|intervals overlap", told)
    before = held.locator("tr").first.locator("th").nth(1).text_content()
    buttons.nth(3).click()
    assert held.locator("tr").first.locator("th").nth(0).text_content() == before
    assert page.locator("button.hold[aria-pressed='true']").count() == 2
    # The ring in the chart.
    assert (
        page.evaluate(
            "() => document.getElementById('pareto').data.find((t) => t.name === 'held').x.length"
        )
        == 2
    )


def test_what_is_held_is_the_jsons(shared_page):
    page = shared_page
    row = next(row for row in raw(page)["rows"] if row["trial"] is not None)
    page.locator(f"tr[data-id='{row['id']}'] button.hold").click()
    cells = page.locator("#held tr", has_text="latency p50").first.locator("td")
    value = float(cells.first.text_content().split()[0])
    page.locator(f"tr[data-id='{row['id']}'] button.hold").click()  # and let go
    assert value == pytest.approx(row["latency_p50_ms"]["value"], rel=1e-3)


def test_a_head_sorts_its_column_both_ways_and_what_was_not_measured_stays_last(shared_page):
    page = shared_page
    raw_rows = {row["id"]: row for row in raw(page)["rows"]}
    head = page.locator("table.rows thead button", has_text="change, points").first
    for descending in (False, True):
        head.click()
        order = first_column(page)
        values = [(raw_rows[i].get("change_points") or {}).get("value") for i in order]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=descending)
        assert values[len(known) :] == [None] * (len(values) - len(known)) != []
        said = page.locator(
            "table.rows th[aria-sort='descending'], table.rows th[aria-sort='ascending']"
        )
        assert said.count() == 1
        assert said.get_attribute("aria-sort") == ("descending" if descending else "ascending")


def test_words_filter_the_rows(shared_page):
    page = shared_page
    page.fill("#filter", "onnxruntime dominated")
    left = first_column(page)
    rows = {row["id"]: row for row in raw(page)["rows"]}
    assert left and {rows[i]["front"] for i in left} == {"no"}
    assert page.locator("#count").text_content() == f"{len(left)} of {len(rows)} rows"
    page.fill("#filter", "no such row")
    assert first_column(page) == []
    page.fill("#filter", "")


def test_dark_follows_the_system_and_the_button(browser, page_file):
    def ground(page):
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    def chart(page):
        return page.evaluate("() => document.getElementById('pareto').layout.paper_bgcolor")

    with opened(browser, page_file, color_scheme="dark") as page:
        assert ground(page) == "rgb(20, 24, 28)" and chart(page) == "#14181c"
        page.click("#theme")
        assert ground(page) == "rgb(255, 255, 255)" and chart(page) == "#ffffff"
        page.emulate_media(color_scheme="light")
        # Two changes at once would be none.
        assert page.evaluate("() => matchMedia('(prefers-color-scheme: light)').matches")
        page.wait_for_timeout(100)
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("html[data-theme='dark']", state="attached")
        assert chart(page) == "#14181c"


def test_all_can_be_done_by_the_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "theme"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("() => document.activeElement.id || document.activeElement.className")
        )
        if "hold" in reached:
            break
    assert {"axis-x", "axis-y", "log-x", "filter", "hold"} <= reached
    page.keyboard.press("Space")
    assert "Held" in page.locator("#held").text_content()
    page.locator("table.rows thead button").nth(4).focus()
    page.keyboard.press("Enter")
    assert page.locator("table.rows th[aria-sort='ascending']").count() == 1
    page.locator("#axis-x").focus()
    before = page.locator("#pareto .xtitle").text_content()
    page.keyboard.press("ArrowDown")
    assert page.locator("#pareto .xtitle").text_content() != before


def test_a_point_of_the_front_opens_and_draws_its_own_charts(page):
    part = page.locator("details.point").first
    assert part.locator(".js-plotly-plot").count() == 0
    part.locator("summary").first.focus()
    page.keyboard.press("Enter")
    part.locator(".js-plotly-plot").first.wait_for()
    assert part.locator(".waterfalllayer .point").count() == 5 + 4
    bars = page.evaluate(
        "() => document.querySelector('details.point .chart[data-chart=steps]').data[0].x.length"
    )
    assert bars == 5


def test_two_bundles_say_what_changed_and_draw_all_their_charts(browser, comparison_file):
    with opened(browser, comparison_file) as page:
        says = page.locator("table.changes .says").all_text_contents()
        assert {"▲ better", "▼ worse"} & set(says)
        charts = page.locator("div.chart.js-plotly-plot")
        assert charts.count() == 1 + 2 * 5
        assert page.locator("[data-chart=layers] .bars .point").count() == 2 * 18
        # Milliseconds of two runs are not set beside each other before one asks for it.
        assert page.locator("#pareto .xtitle").text_content().startswith("speed-up")


def test_the_raw_json_is_saved_from_the_page(shared_page):
    page = shared_page
    with page.expect_download() as download:
        page.locator("button.download").first.click()
    saved = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert download.value.suggested_filename == "results.json"
    assert saved == raw(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, page_file, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    with opened(browser, page_file, color_scheme=scheme) as page:
        for point in page.locator("button.hold").all()[:2]:
            point.click()
        page.locator("details.point summary").first.click()
        page.locator("details.point .js-plotly-plot").first.wait_for()
        found = axe.Axe().run(page).response
        assert len(found["passes"]) > 15
        serious = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_axe_finds_no_serious_fault_in_a_comparison(browser, comparison_file):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    with opened(browser, comparison_file) as page:
        page.evaluate(
            "() => document.querySelectorAll('details').forEach((d) => { d.open = true; })"
        )
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []
