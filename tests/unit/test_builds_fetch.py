"""Fetching, as far as it goes without a network: mirrors, versions, the private configuration, refusals."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.builds import _apt, fetch
from harness.builds._apt import PrivateApt, Suite, belongs, mirrors, upstream
from harness.builds._process import silent
from harness.errors import EnvironmentLackError, UsageError

ARCHIVE, SECURITY = "http://mirror.example.org/debian/", "http://mirror.example.org/debian-security/"
TARGETS = f"""\
{SECURITY} bookworm-security
https://packages.example.org/apt cloud-sdk-bookworm
{ARCHIVE} bookworm
{ARCHIVE} bookworm-updates
http://second.example.org/debian/ trixie
"""
DUMP = """\
APT "";
Acquire "";
Acquire::http::Proxy "http://proxy.example.org:3128/";
Acquire::Check-Valid-Until "false";
APT::Update::Post-Invoke-Success:: "touch /host";
Dir::Etc::sourcelist "sources.list";
"""


@pytest.fixture
def host_apt(tmp_path, monkeypatch):
    """A host whose apt says what the test wants it to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {"indextargets": TARGETS, "dump": DUMP}
    for name in ("apt-get", "apt-config", "dpkg-deb"):
        script = folder / name
        script.write_text(f'#!/bin/sh\ncat "{folder}/$1"\n')
        script.chmod(0o755)
    for name, text in answers.items():
        (folder / name).write_text(text)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    keyring = tmp_path / "debian.gpg"
    keyring.touch()
    monkeypatch.setattr(_apt, "KEYRING", keyring)
    return folder


def test_the_mirrors_are_those_of_the_host(host_apt):
    assert mirrors() == (ARCHIVE, SECURITY)
    (host_apt / "indextargets").write_text("http://ubuntu.example.org/ noble\n")
    with pytest.raises(EnvironmentLackError, match="no Debian archive"):
        mirrors()


def test_the_private_configuration_has_the_hosts_network_settings_and_none_of_its_hooks(host_apt, tmp_path):
    apt = PrivateApt(tmp_path / "apt", Suite("trixie", backports=True), progress=silent)
    text = (apt.folder / "apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy.example.org:3128/";' in text
    assert "Post-Invoke" not in text
    sources = (apt.folder / "etc/sources.list").read_text()
    assert f"] {ARCHIVE} trixie-backports main\n" in sources
    assert f"deb-src [signed-by={_apt.KEYRING}] {SECURITY} trixie-security main\n" in sources
    assert "example.org/apt" not in sources


def test_apt_itself_reads_the_private_configuration_as_meant(tmp_path):
    if not (Path("/usr/bin/apt-config").exists() and _apt.KEYRING.exists()):
        pytest.skip("needs apt and debian-archive-keyring")
    apt = PrivateApt(tmp_path / "with space", Suite("bookworm"), progress=silent)
    keys = ("Dir::Etc::sourcelist/f", "Dir::State::lists/d", "Dir::Cache::archives/d", "Dir::State::status/f")
    shell = subprocess.run(
        ["apt-config", "shell", *(word for n, key in enumerate(keys) for word in (f"V{n}", key))],
        env={"APT_CONFIG": str(apt.folder / "apt.conf"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=True,
    )
    places = [line.split("=", 1)[1].strip("'") for line in shell.stdout.splitlines()]
    assert len(places) == len(keys)
    for place in places:
        assert place.startswith(str(apt.folder)), place


def test_a_host_without_apt_or_keys_is_told_so(host_apt, tmp_path, monkeypatch):
    _apt.KEYRING.unlink()
    with pytest.raises(EnvironmentLackError, match="can't be verified") as caught:
        fetch("7.2", cache=tmp_path / "cache")
    assert "debian-archive-keyring" in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLackError, match="no apt-get"):
        fetch("7.2", cache=tmp_path / "cache")


def test_an_unknown_version_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"9\.9") as caught:
        fetch("9.9", cache=tmp_path)
    assert "7.2, 10.0, 11.1" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "series", "belonging"),
    [
        ("1:7.2+dfsg-7+deb12u18", "7.2", True),
        ("1:7.2.3-1", "7.2", True),
        ("1:7.20-1", "7.2", False),
        ("1:10.0.13+ds-0+deb13u1", "10.0", True),
        ("1:11.1.3+ds-1~bpo13+1", "10.0", False),
        ("10.0.2-1", "10.0", True),
    ],
)
def test_a_version_belongs_to_its_series_only(version, series, belonging):
    assert belongs(version, series) is belonging


def test_upstream_versions_lose_epoch_and_revision():
    assert upstream("1:10.0.13+ds-0+deb13u1") == "10.0.13+ds"
