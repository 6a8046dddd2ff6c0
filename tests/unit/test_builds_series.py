"""Series: the order they come in, what is read as a patch, and what a misfit says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.builds._apply import apply
from harness.builds._process import silent
from harness.builds._recipe import images_dir
from harness.builds._series import reference_series, resolve
from harness.builds._source import _snapshot
from harness.errors import EnvironmentLackError, UsageError

DIFF = """\
diff --git a/{file} b/{file}
--- a/{file}
+++ b/{file}
@@ -{line},3 +{line},3 @@
 {before}
-{old}
+{new}
 {after}
"""


def message(subject: str, diff: str, *, number: str = "", reference: str = "") -> str:
    name = f"<{subject.replace(' ', '-')}@example.org>"
    thread = f"In-Reply-To: <{reference}@example.org>\nReferences: <{reference}@example.org>\n" if reference else ""
    return (
        f"From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\nFrom: Some Body <some@example.org>\n"
        f"Date: Mon, 1 Sep 2025 10:00:00 +0000\nMessage-ID: {name}\n{thread}"
        f"Subject: [PATCH{number}] {subject}\n\nWhy.\n---\n{diff}-- \n2.39\n\n"
    )


def edit(line: int, new: str, *, file: str = "net.c", old: str | None = None) -> str:
    """A diff that changes one line of the numbered file."""
    return DIFF.format(file=file, line=line - 1, before=f"line {line - 1}", old=old or f"line {line}", new=new,
                       after=f"line {line + 1}")


def folder(parent: Path, name: str, *, needs: tuple[str, ...] = (), diff: str = "") -> Path:
    place = parent / name
    place.mkdir(parents=True)
    listed = ", ".join(f'"{need}"' for need in needs)
    (place / "series.toml").write_text(f'title = "{name}"\nneeds = [{listed}]\n')
    (place / "0001-change.patch").write_text(message(name, diff or edit(5, name)))
    return place


@pytest.fixture
def repository(tmp_path):
    """An object store with one tree: two files of forty numbered lines."""
    store, tree = tmp_path / "repo.git", tmp_path / "tree"
    tree.mkdir()
    for name in ("net.c", "tap.c"):
        (tree / name).write_text("".join(f"line {n}\n" for n in range(1, 41)))
    subprocess.run(["git", "init", "-q", "--bare", store], check=True)
    return store, _snapshot(tree, store, tmp_path, ignored=True)


def content(repository, tree: str, file: str = "net.c") -> list[str]:
    store, _ = repository
    out = subprocess.run(["git", "show", f"{tree}:{file}"], cwd=store, check=True, capture_output=True, text=True)
    return out.stdout.splitlines()


def put(repository, tmp_path: Path, *items: Path) -> str:
    store, tree = repository
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return apply(resolve(items, scratch=scratch, progress=silent), repository=store, tree=tree, scratch=scratch)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_series_come_after_what_they_need_and_otherwise_by_name(tmp_path):
    for name, needs in {"d": (), "a": ("c",), "c": ("d",), "b": ()}.items():
        folder(tmp_path, name, needs=needs)
    (tmp_path / "README.md").write_text("not a series\n")
    assert names(reference_series(tmp_path)) == ["b", "d", "c", "a"]


def test_a_series_that_is_not_in_the_reference_comes_only_when_asked_for_or_needed(tmp_path):
    for name in ("a", "b", "c"):
        folder(tmp_path, name)
    apart = tmp_path / "b" / "series.toml"
    apart.write_text(apart.read_text() + "in_reference = false\n")
    assert names(reference_series(tmp_path)) == ["a", "c"]
    asked = resolve([tmp_path, tmp_path / "b"], scratch=tmp_path, progress=silent)
    assert [each.name for each in asked] == ["a", "c", "b"]
    folder(tmp_path, "d", needs=("b",))
    assert names(reference_series(tmp_path)) == ["a", "b", "c", "d"]


def test_one_series_brings_what_it_needs(tmp_path):
    folder(tmp_path, "base")
    top = folder(tmp_path, "top", needs=("base",))
    found = resolve([top, tmp_path / "base"], scratch=tmp_path, progress=silent)
    assert [each.name for each in found] == ["base", "top"]
    assert found[0].patches[0].label == "base/0001-change.patch"


def test_circles_and_missing_neighbours_are_named(tmp_path):
    folder(tmp_path, "a", needs=("b",))
    folder(tmp_path, "b", needs=("a",))
    with pytest.raises(UsageError, match=r"need each other: \w -> \w -> \w"):
        reference_series(tmp_path)
    with pytest.raises(UsageError, match="needs 'absent'"):
        resolve([folder(tmp_path / "other", "x", needs=("absent",))], scratch=tmp_path, progress=silent)


def test_bad_series_files_are_named(tmp_path):
    place = folder(tmp_path, "a")
    (place / "series.toml").write_text('titel = "typo"\n')
    with pytest.raises(UsageError, match=r"series\.toml.*titel"):
        resolve([place], scratch=tmp_path, progress=silent)


@pytest.mark.parametrize("item", ["absent.patch", "empty", "words.patch"])
def test_what_is_no_series_is_refused(tmp_path, item):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.patch").write_text("Subject: hello\n\nno diff\n")
    with pytest.raises(UsageError):
        resolve([tmp_path / item], scratch=tmp_path, progress=silent)


def test_a_quilt_series_file_gives_the_order(tmp_path, repository):
    place = tmp_path / "quilt"
    place.mkdir()
    (place / "a.patch").write_text(message("second", edit(5, "twice", old="once")))
    (place / "b.patch").write_text(message("first", edit(5, "once")))
    (place / "series").write_text("# comment\nb.patch\na.patch -p1\n")
    assert content(repository, put(repository, tmp_path, place))[4] == "twice"


def test_patches_of_all_forms_apply_in_order(tmp_path, repository):
    bare = tmp_path / "bare.diff"
    bare.write_text(edit(5, "bare"))
    box = tmp_path / "both.mbox"
    one, two = edit(9, "one"), edit(9, "two", old="one")
    box.write_text(message("one", one, number=" 1/2") + message("two", two, number=" 2/2"))
    single = folder(tmp_path, "single", diff=edit(20, "single", file="tap.c"))
    tree = put(repository, tmp_path, bare, box, single)
    assert content(repository, tree)[4::4][:2] == ["bare", "two"]
    assert content(repository, tree, "tap.c")[19] == "single"


def test_a_thread_with_cover_replies_and_wrong_order_is_sorted_by_b4(tmp_path, repository):
    box = tmp_path / "thread.mbox"
    box.write_text(
        message("cover", "", number=" 0/2")
        + message("two", edit(9, "two", old="one"), number=" 2/2", reference="cover")
        + message("one", edit(9, "one"), number=" 1/2", reference="cover")
        + message("x", "> diff --git a/net.c b/net.c\n", reference="one").replace("[PATCH] x", "Re: [PATCH 1/2] one")
    )
    try:
        tree = put(repository, tmp_path, box)
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    assert content(repository, tree)[8] == "two"


def test_a_misfit_names_patch_file_and_hunk(tmp_path, repository):
    fits = edit(5, "fits")
    wrong = edit(20, "wrong", old="never so").split("@@", 1)[1]
    good = folder(tmp_path, "good", diff=edit(30, "good"))
    bad = folder(tmp_path, "bad", diff=edit(5, "tap", file="tap.c") + fits + "@@" + wrong)
    with pytest.raises(UsageError) as caught:
        put(repository, tmp_path, good, bad)
    text = caught.value.message
    assert text.startswith("bad/0001-change.patch (bad) does not apply: net.c, hunk #2 (@@ -19,3 +19,3 @@")
    assert "tap.c" not in text


def test_a_misfit_in_a_mailbox_names_the_message(tmp_path, repository):
    box = tmp_path / "both.mbox"
    box.write_text(message("one", edit(9, "one")) + message("two", edit(9, "two", old="three")))
    with pytest.raises(UsageError, match=r"both\.mbox, message 2 of 2 \(two\) does not apply: net\.c, hunk #1"):
        put(repository, tmp_path, box)


def test_a_patch_for_a_file_that_is_not_there_names_it(tmp_path, repository):
    with pytest.raises(UsageError, match=r"hw/absent\.c"):
        put(repository, tmp_path, folder(tmp_path, "a", diff=edit(5, "x", file="hw/absent.c")))


def test_a_broken_patch_is_said_to_be_unreadable(tmp_path, repository):
    with pytest.raises(UsageError, match=r"a/0001-change\.patch.*corrupt patch"):
        put(repository, tmp_path, folder(tmp_path, "a", diff=edit(5, "x").replace(",3 @@", ",9 @@")))


@pytest.mark.parametrize("series", ["net-poll-stopped", "filter-when-stopped"])
def test_redirects_series_touch_no_file_of_migration(series):
    touched = {
        line.split()[2].removeprefix("a/")
        for patch in (images_dir() / "series" / series).glob("*.patch")
        for line in patch.read_text().splitlines()
        if line.startswith("diff --git ")
    }
    assert any(path.startswith("net/") for path in touched)
    assert not [path for path in touched if "migration" in path]
