"""The report in a real browser: quiet, self-contained, usable with a keyboard and by a screen reader, in light and dark, on paper."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from devtools import chromium, find_chromium

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import itertools

from bundle_factory import make_run

from harness.analysis.metrics import Unit
from harness.analysis.regression import trend
from harness.model.example import make_result
from harness.report.html import Nights, Source, render, render_trends
from harness.store.campaigns import campaign_of
from harness.store.identity import run_key

RUNS = 20
NIGHTS = 12


@pytest.fixture(scope="module")
def trends(tmp_path_factory):
    """The page of many nights, on one of which a figure stepped."""
    keys = [run_key(make_result(name)) for name in ("udp-none", "udp-tap-handover")]
    found = []
    for key in keys:
        for metric, unit in (("compute_ms", Unit.MS), ("lost", Unit.PACKETS)):
            days = [(f"2026-01-{night + 1:02d}", 100.0 + run + (20 if night > 6 else 0)) for night in range(NIGHTS) for run in range(5)]
            found.append(Nights(key=key, metric=metric, unit=unit, trend=trend(days), runs=tuple(days)))
    output = tmp_path_factory.mktemp("trends") / "trends.html"
    output.write_text(render_trends(found, results="results"))
    return output


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A campaign's report: 20 runs of one scenario."""
    folder = tmp_path_factory.mktemp("report")
    first = make_run(folder / "results")
    runs = [first]
    for number in range(1, RUNS):
        run_id = f"20260102T0304{number:02d}Z-demo-abcd{number:02d}"
        runs.append(make_run(folder / "results", run_id=run_id))
    output = folder / "report.html"
    sources = [Source(run=run, path=run.path) for run in runs]
    output.write_text(render(sources, output=output, campaign=campaign_of([run.path for run in runs]), title="a campaign"))
    return output


@pytest.fixture(scope="module")
def page():
    program = find_chromium()
    if program is None:
        reason = "Chromium is not installed: `make browser` brings it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium(program) as page:
        yield page


@pytest.fixture
def opened(page, report):
    page.console.clear()
    page.requests.clear()
    page.open(report)
    return page


def test_it_says_nothing_and_asks_for_nothing_but_itself(opened, report):
    assert opened.evaluate("document.title") == "a campaign – switchover"
    assert opened.console == []
    assert opened.requests == [report.as_uri()]
    assert report.stat().st_size < 5_000_000


def test_the_nights_are_as_quiet_and_say_their_steps(page, trends):
    page.console.clear()
    page.requests.clear()
    page.open(trends)
    assert (page.console, page.requests) == ([], [trends.as_uri()])
    assert "4 of 4 figures stepped." in page.evaluate("document.querySelector('.lead').textContent")
    assert page.evaluate("[...document.querySelectorAll('header li')].map((each) => each.textContent.split(': ').at(-1))") == ["+20 on 2026-01-08"] * 4
    assert page.evaluate("[...document.querySelectorAll('header a')].every((a) => document.querySelector(a.hash))")
    images = [node["name"] for node in page.accessible() if node["role"] in ("image", "img")]
    assert len(images) == 4
    assert all("stepped by +20 on 2026-01-08" in name for name in images)
    # a dot for each run lies within its chart
    assert page.evaluate("[...document.querySelectorAll('svg')].every((svg) => svg.querySelector('.dots').getAttribute('d').split('M').length === 61)")
    assert page.evaluate("[...document.querySelectorAll('svg')].every((svg) => { const [a, b] = [svg, svg.querySelector('.dots')].map((e) => e.getBoundingClientRect()); return b.left >= a.left && b.right <= a.right && b.top >= a.top && b.bottom <= a.bottom; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "texts"), [("report", 100), ("trends", 40)])
def test_text_stands_out_from_what_is_behind_it(page, request, name, texts, scheme):
    page.open(request.getfixturevalue(name), scheme=scheme)
    ratios = page.evaluate(
        """(() => {
          const rgb = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const light = (c) => { const [r, g, b] = rgb(c).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const page = getComputedStyle(document.body).backgroundColor;
          const found = [];
          for (const each of document.querySelectorAll("h1,h2,p,td,th,a,figcaption,caption,summary,.verdict,code")) {
            const style = getComputedStyle(each);
            const behind = style.backgroundColor === "rgba(0, 0, 0, 0)" ? page : style.backgroundColor;
            const [a, b] = [light(style.color), light(behind)].sort((x, y) => y - x);
            found.push((a + 0.05) / (b + 0.05));
          }
          return found;
        })()"""
    )
    assert len(ratios) > texts
    assert min(ratios) >= 4.5  # WCAG 2.2, level AA


def test_a_screen_reader_is_told_what_everything_is(opened):
    nodes = opened.accessible()
    for role in ("image", "img", "button", "link", "table", "heading"):
        assert all(node["name"] for node in nodes if node["role"] == role), role
    assert sum(node["role"] in ("image", "img") for node in nodes) >= 5
    assert opened.evaluate("document.documentElement.lang") == "en"
    levels = opened.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_are_sorted_by_a_click_and_say_so(opened):
    column = "[...document.querySelectorAll('#all ~ .wide tbody tr')].map((row) => row.cells[0].textContent)"
    before = opened.evaluate(column)
    button = "document.querySelector('#all ~ .wide th button')"
    opened.evaluate(f"{button}.click()")
    assert opened.evaluate(column) == sorted(before)
    assert opened.evaluate(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    opened.evaluate(f"{button}.click()")
    assert opened.evaluate(column) == sorted(before, reverse=True)
    assert opened.evaluate(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"


def test_a_link_to_a_run_opens_it(opened):
    assert opened.evaluate("document.querySelectorAll('details[open]').length") == 1
    last = opened.evaluate("[...document.querySelectorAll('#all ~ .wide tbody a')].at(-1).click(), location.hash.slice(1)")
    assert opened.evaluate(f"new Promise((done) => setTimeout(() => done(document.getElementById('{last}').open), 0))")


def test_on_paper_every_run_is_there(opened):
    short = opened.evaluate("(dispatchEvent(new Event('beforeprint')), document.querySelectorAll('details[open]').length)")
    assert short == RUNS
    assert opened.evaluate("(dispatchEvent(new Event('afterprint')), document.querySelectorAll('details[open]').length)") == 1
    assert opened.pdf_bytes() > 10_000


def test_a_narrow_window_scrolls_charts_and_not_the_page(page, report):
    page.open(report, width=420)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


