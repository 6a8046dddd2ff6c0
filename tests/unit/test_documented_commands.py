"""Every command in README and docs is one that the program takes; every shipped file that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import commands_in, refusal

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_a_command_that_does_not_exist_is_noticed():
    assert "no command" in (refusal("forecast results") or "")
    assert "--colour" in (refusal("run udp-none --colour red") or "")
    assert refusal("run udp-none --repeat 0") is not None
    assert refusal("baseline check results/x --or-set") is None
    assert list(commands_in("    .venv/bin/switchover run a b   # why\n    switchover qemu fetch 7.2|10.0\n  switchover no\n")) == ["run a b"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_taken(page):
    refused = {command: why for command in commands_in(page.read_text()) if (why := refusal(command)) is not None}
    assert refused == {}


def test_the_pages_have_commands_at_all():
    assert sum(len(list(commands_in(page.read_text()))) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scenarios_of_a_page_are_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"\bdocs/[\w./-]+\.md", text):
        assert (ROOT / name).is_file(), name


def test_every_page_is_in_the_manuals_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "README.md" and f"]({page.name}" not in index] == []
