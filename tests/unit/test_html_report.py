"""The HTML report: whole, self-contained, said in words too; a stranger's text does nothing in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import msgspec
import numpy as np
import pytest
from bundle_factory import RUN_ID, make_run
from typer.testing import CliRunner

from harness.cli.app import app
from harness.report.html import Source, render
from harness.report.html.chart import Scale, bars, log_ticks, ticks
from harness.store.campaigns import campaign_of

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Complains of elements that are not closed in order; keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [(tag, name) for name in ("src", "srcset", "poster", "data", "action") if name in known]
        if tag == "link" or (tag == "use" and "href" in known):
            self.loaded.append((tag, "href"))
        if tag == "a":
            self.links.append(known["href"])
        if "id" in known:
            self.ids.append(known["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(tmp_path, *runs, **more):
    output = tmp_path / "out" / "report.html"
    sources = [Source(run=run, path=run.path) for run in runs]
    return render(sources, output=output, **more)


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "results")


def test_one_run_is_told_in_words_and_charts(tmp_path, run_dir):
    text = page_of(tmp_path, run_dir)
    page = Page(text)
    assert "fail" in page.text
    assert "20 of 200 packets lost" in page.text
    assert "stranded at the source: 20" in page.text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) >= 5
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20
    assert any("20 lost" in chart for chart in charts)


def test_nothing_is_loaded_and_nothing_could_be(tmp_path, run_dir):
    text = page_of(tmp_path, run_dir)
    assert Page(text).loaded == []
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_link_leads_somewhere(tmp_path, run_dir):
    (run_dir.path / "console-m0.log").write_text("x")
    page = Page(page_of(tmp_path, run_dir))
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (tmp_path / "out" / unquote(link)).resolve().is_file(), link
    assert any(link.endswith("console-m0.log") for link in page.links)


def test_the_commands_that_repeat_it_stand_beside_the_figures(tmp_path, run_dir):
    page = Page(page_of(tmp_path, run_dir))
    for command in (f"switchover run {run_dir.path}/scenario.toml", f"switchover analyze {run_dir.path}", f"switchover why {run_dir.path} udp 100"):
        assert command in page.text


def test_the_same_run_gives_the_same_bytes(tmp_path, run_dir):
    assert page_of(tmp_path, run_dir) == page_of(tmp_path, run_dir)


def test_text_of_a_stranger_stays_text(tmp_path):
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    run = make_run(tmp_path / "results", notes=(evil,))
    text = page_of(tmp_path, run)
    assert "alert(1)</script>" not in text
    assert Page(text).loaded == []
    assert evil in Page(text).text


def test_a_campaign_has_its_comparison_and_every_run(tmp_path):
    runs = [make_run(tmp_path / "results", run_id=f"20260102T03040{n}Z-demo-abcde{n}") for n in range(6)]
    campaign = campaign_of([run.path for run in runs])
    half = msgspec.structs.replace(campaign.arms[0], label="first", trials=campaign.arms[0].trials[:3])
    rest = msgspec.structs.replace(campaign.arms[0], label="second", trials=campaign.arms[0].trials[3:])
    text = page_of(tmp_path, *runs, campaign=msgspec.structs.replace(campaign, arms=(half, rest)))
    page = Page(text)
    for run in runs:
        assert run.run_id in page.ids
        assert f"#{run.run_id}" in page.links
    assert "6 of 6 runs" in page.text
    assert "Lost packets" in page.text
    assert text.count('<details id="') == 6
    assert text.count("<table class=\"sortable\"") >= 8


def test_a_run_without_a_migration_shows_all_of_its_traffic(tmp_path):
    run = make_run(tmp_path / "results", migrations=())
    assert "ms from traffic began" in Page(page_of(tmp_path, run)).text


def test_the_command_writes_beside_the_run_and_says_where(tmp_path, run_dir):
    answer = CliRunner().invoke(app, ["report", str(run_dir.path)], catch_exceptions=False)
    assert answer.exit_code == 0
    assert answer.stdout.strip() == str(tmp_path / "results" / f"{RUN_ID}.html")
    Page(Path(answer.stdout.strip()).read_text())


def test_a_bundle_is_shown_without_links(tmp_path, run_dir):
    from bundle_factory import bundle_bytes

    bundle = tmp_path / "run.tar.zst"
    bundle.write_bytes(bundle_bytes(tmp_path / "other"))
    answer = CliRunner().invoke(app, ["report", str(bundle), "--output", str(tmp_path / "b.html")], catch_exceptions=False)
    assert answer.exit_code == 0
    page = Page((tmp_path / "b.html").read_text())
    assert all(link.startswith("#") for link in page.links)
    assert "20 of 200 packets lost" in page.text
    assert f"switchover replay {bundle}" in page.text


def test_a_glob_over_everything_in_results_takes_the_runs(tmp_path, run_dir):
    results = tmp_path / "results"
    make_run(results / "20260102T030405Z-suite-abcdef", run_id="20260102T030406Z-demo-abcde1")
    (results / "20260102T030405Z-bisect-abcdef").mkdir()
    (results / "20260102T030405Z-demo-000000.partial").mkdir()
    for _ in range(2):  # the second time there is a report among them
        answer = CliRunner().invoke(app, ["report", *map(str, sorted(results.glob("2*")))], catch_exceptions=False)
        assert answer.exit_code == 0
        page = Page(Path(answer.stdout.strip()).read_text())
        assert {"20260102T030406Z-demo-abcde1", RUN_ID} <= set(page.ids)


# -- drawing


def test_bars_are_one_path_in_units_of_bins():
    svg = str(bars(np.array([0, 2, 2, 0, 1]), base=50, height=20, most=2, kind="to-guest"))
    assert 'd="M1 0V2H3V0ZM4 0V1H5V0Z"' in svg
    assert "scale(172 -10)" in svg


def test_no_frames_draw_nothing():
    assert bars(np.zeros(5, dtype=np.int64), base=50, height=20, most=2, kind="x") == ""


def test_ticks_are_round_and_within():
    assert ticks(-130, 480, count=6) == [0, 200, 400]
    assert ticks(0, 1, count=4) == [0, 0.5, 1.0]
    assert log_ticks(0.001, 20) == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_a_logarithmic_scale_puts_decades_apart_alike_and_shows_less_at_its_beginning():
    scale = Scale(0.01, 100, 0, 400, log=True)
    assert [round(scale(x)) for x in (0.01, 0.1, 1, 10, 100)] == [0, 100, 200, 300, 400]
    assert scale(0) == 0
