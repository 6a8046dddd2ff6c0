"""Bundles that are sound: the same bytes twice, what is scrubbed, what is cut, and that they read like the run itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from bundle_factory import IDENTITY, RUN_ID, START, Archive, bundle_bytes, facts_of, make_run
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.columns import read_capture
from harness.analysis.pcapng import OUTBOUND, PcapngWriter
from harness.analysis.synthetic import frames_batch, probe_frame
from harness.bundle import Observation, finding_of, make_bundle, open_bundle, open_run
from harness.bundle.finding import Sign, SignKind, holds, needs_timing
from harness.bundle.mail import mail_text
from harness.bundle.scrub import Identity, Scrubber
from harness.bundle.trust import scenario_problems
from harness.bundle.write import foreign_addresses
from harness.errors import BundleError, UsageError
from harness.model.events import Event
from harness.model.load import load_scenario, shipped_scenarios
from harness.model.result import Outcome
from harness.model.scenario import Scenario
from harness.store.analyze import analyze, analyze_run
from harness.store.rundir import RunDirectory


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "demo.tar.zst"
    path.write_bytes(bundle_bytes(tmp_path))
    return path


# -- the archive


def test_the_same_run_gives_the_same_bytes_even_when_its_files_were_touched(tmp_path):
    run = make_run(tmp_path)
    first = make_bundle(run, identity=IDENTITY, cache=tmp_path).data
    for file in sorted(run.path.rglob("*"), reverse=True):
        file.touch()
        if file.is_file():
            file.chmod(0o600)
    assert make_bundle(run, identity=IDENTITY, cache=tmp_path).data == first


def test_a_bundle_reads_as_the_run_does(tmp_path, made):
    run = RunDirectory(tmp_path / "results" / RUN_ID, RUN_ID)
    with open_run(made) as inside:
        folder = inside.path
        assert analyze(inside) == analyze(run)
        assert inside.facts() == run.facts()
        story = analyze_run(inside).ledgers["udp"].explain(105)
    assert story == analyze_run(run).ledgers["udp"].explain(105)
    assert not folder.exists()


def test_a_folder_is_opened_as_ever(tmp_path, made):
    with open_run(tmp_path / "results" / RUN_ID) as run:
        assert run.run_id == RUN_ID
    with pytest.raises(UsageError, match="no run directory"), open_run(tmp_path / "nothing"):
        pass


def test_tar_itself_unpacks_it_into_one_folder(tmp_path, made):
    archive = Archive(made.read_bytes())
    assert archive.top == RUN_ID
    assert {"scenario.toml", "result.json", "run.json", "capture/peer.pcapng", "traffic/1.sent.rec"} <= set(archive.files)
    assert [m["name"] for m in archive.manifest["members"]] == sorted(archive.files)


# -- what is cut


def test_what_is_missed_least_is_cut_first_and_said(tmp_path):
    texts = {"agent-m0.jsonl": '{"a":1}\n', "features.json": "{}", "qmp-m0.jsonl": '{"b":2}\n'}
    run = make_run(tmp_path, texts=texts)
    whole = make_bundle(run, identity=IDENTITY, cache=tmp_path)
    smaller = make_bundle(run, identity=IDENTITY, cache=tmp_path, max_bytes=len(whole.data) - 1)
    assert len(smaller.data) < len(whole.data)
    assert "agent-m0.jsonl" in [each.name for each in smaller.manifest.left_out]
    assert all("cut to keep" in each.reason for each in smaller.manifest.left_out)
    least, limit = smaller, len(smaller.data)
    while any(member.name.startswith("capture/") for member in least.manifest.members):
        least = make_bundle(run, identity=IDENTITY, cache=tmp_path, max_bytes=limit)
        assert len(least.data) <= limit
        limit -= 300
    names = {member.name for member in least.manifest.members}
    assert {"scenario.toml", "result.json", "run.json", "host.json", "log.txt"} <= names
    assert not {"agent-m0.jsonl", "features.json"} & names
    with pytest.raises(UsageError, match="least bundle"):
        make_bundle(run, identity=IDENTITY, cache=tmp_path, max_bytes=100)
    path = tmp_path / "least.tar.zst"
    path.write_bytes(least.data)
    with pytest.raises(BundleError, match=r"capture/\w+\.pcapng.*left out: cut to keep"), open_run(path) as inside:
        analyze(inside)


def test_what_is_no_part_of_a_run_stays_out(tmp_path):
    run = make_run(tmp_path)
    (run.path / "id_ed25519").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    (run.path / "core.1234").write_bytes(b"\0")
    (run.path / "link.txt").symlink_to("/etc/passwd")
    made = make_bundle(run, identity=IDENTITY, cache=tmp_path)
    assert {each.name for each in made.manifest.left_out} == {"id_ed25519", "core.1234", "link.txt"}
    assert b"PRIVATE KEY" not in b"".join(Archive(made.data).files.values())


def test_a_capture_with_frames_from_outside_the_lab_stays_out(tmp_path):
    run = make_run(tmp_path)
    path = run.path / "capture" / "peer.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface("x")
        writer.write(frames_batch([probe_frame(stream=1)], time_ns=[START], direction=OUTBOUND))
    assert foreign_addresses(read_capture(path).columns) == 1
    made = make_bundle(run, identity=IDENTITY, cache=tmp_path)
    assert [each.reason for each in made.manifest.left_out] == ["holds 1 frames with addresses from outside the lab"]


# -- what is scrubbed

LEAKY = r"""
host stardust, STARDUST.example.com up; user alice logged in; Alice Example <alice@example.com>
export API_TOKEN=hunter2 password: "correct horse" curl https://alice:pw@example.com/x
ghp_0123456789abcdefghijABCDEFGHIJ Authorization: Bearer abcdefghijklmnop
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAA
-----END OPENSSH PRIVATE KEY-----
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPq alice@stardust
address 192.168.178.20 and 2001:db8::17 and fe80::1234:5678:9abc:def0%eth0, NIC 3c:52:82:11:22:33
kernel /home/alice/linux/bzImage, file=/srv/secret/customer.img, -L/opt/qemu/share, exec:cat /var/tmp/x/y.state
id 0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f esc""" + "\x1b[31mred\n"
SECRETS = (
    "stardust", "alice", ".example.com up", "example.com>", "hunter2", "correct horse", "pw@", "ghp_0", "abcdefghijklmnop", "b3Bl", "AAAAC3", "192.168", "2001:db8",
    "5678:9abc", "3c:52", "/home/", "/srv/", "/opt/", "/var/", "0f0f0f", "\x1b",
)  # fmt: skip


def test_nothing_of_the_host_is_left_in_any_text(tmp_path):
    lines = json.dumps({"t": 1, "message": LEAKY, "nested": {"token": "hunter2", "/home/alice/key": ["alice"]}}) + "\n"
    texts = {
        "log.txt": LEAKY, "console-m0.log": LEAKY, "qmp-m0.jsonl": lines + '{"cut off: alice', "argv-m0.json": lines, "agent-m0.jsonl": lines,
    }  # fmt: skip
    made = make_bundle(make_run(tmp_path, texts=texts, host={"kernel": "6.1", "name": "stardust"}, notes=(LEAKY,)), identity=IDENTITY, cache=tmp_path)
    for name, data in Archive(made.data).files.items():
        if not name.endswith((".pcapng", ".rec")):
            for secret in SECRETS:
                assert secret not in data.decode(), (name, secret)
    assert set(made.manifest.scrubbed) == {"secret", "key", "host", "user", "mail", "path", "address", "id"}


def test_what_the_testbed_itself_says_stays():
    said = (
        "RESUME 10.77.0.2 10.78.0.3 fd77::2 fe80::5054:ff:fe77:2 239.77.0.1 255.255.255.255 52:54:00:77:00:02 33:33:00:00:00:01 "
        "/machine/peripheral/net0/virtio-backend /dev/kvm /usr/share/seabios Debian 1:7.2+dfsg-7+deb12u18+b3 6.18.44 12:34:56 "
        "to-guest/from-guest 2026-11-21T11:41:22.807+00:00 neigh=10.77.0.1@52:54:00:77:00:01"
    )
    assert Scrubber(IDENTITY).text(said) == said


@given(text=st.text(max_size=80), user=st.sampled_from(["alice", "bob-b", "zoë"]), where=st.integers(0, 80))
def test_a_name_is_found_wherever_it_stands(text, user, where):
    scrubber = Scrubber(Identity(users=(user,)))
    cleaned = scrubber.text(f"{text[:where]} {user} {text[where:]}")
    assert not re.search(rf"(?<![A-Za-z0-9]){user}(?![A-Za-z0-9])", cleaned, re.I)
    assert scrubber.text(cleaned) == cleaned or "<" in text


def test_paths_of_the_scenario_do_not_leave_the_host_and_a_kernel_of_ones_own_is_said(tmp_path):
    facts = facts_of()
    scenario = msgspec.convert(
        msgspec.to_builtins(facts.scenario) | {
            "name": "alice-test", "guest": {"kernel": "/home/alice/bzImage", "modules": "/home/alice/modules"},
            "qemu": {"source": "/home/alice/qemu/build/qemu-system-x86_64", "destination": "system"},
        }, Scenario,
    )  # fmt: skip
    made = make_bundle(make_run(tmp_path, scenario=scenario), identity=IDENTITY, cache=tmp_path)
    path = tmp_path / "x.tar.zst"
    path.write_bytes(made.data)
    assert made.manifest.own_kernel
    with open_bundle(path) as bundle:
        assert bundle.scenario.guest.kernel is None
        assert bundle.scenario.qemu.source == "qemu-system-x86_64"
        assert bundle.scenario.name == "user-test"
        assert bundle.run.result().scenario == bundle.scenario


# -- the finding


def seen(tmp_path: Path, **more) -> Observation:
    return Observation.of_run(make_run(tmp_path, **more))


def test_the_finding_of_a_loss_that_was_not_expected(tmp_path):
    finding = finding_of(seen(tmp_path))
    assert [(sign.kind, sign.key) for sign in finding.signs] == [(SignKind.EXPECTATION, "lost"), (SignKind.LOST, "stranded_at_source")]
    assert not finding.lasting


def test_a_control_that_loses_as_expected_shows_the_loss(tmp_path):
    finding = finding_of(seen(tmp_path, expect={"lost": "> 0"}))
    assert [(sign.kind, sign.key) for sign in finding.signs] == [(SignKind.LOST, "stranded_at_source")]
    assert holds(finding, seen(tmp_path / "b", expect={"lost": "> 0"})) is True


def test_a_failure_is_compared_without_what_differs_from_run_to_run(tmp_path):
    one = seen(tmp_path / "a", failure="the migration ended as 'failed': load of 0x1f at /tmp/a/b failed: -22")
    two = seen(tmp_path / "b", failure="the migration ended as 'failed': load of 0x7a at /tmp/q failed: -5")
    other = seen(tmp_path / "c", failure="the destination died")
    finding = finding_of(one)
    assert finding.signs[0].kind is SignKind.FAILURE
    assert finding.outcome is Outcome.FAILED
    assert holds(finding, two) is True
    assert holds(finding, other) is False
    assert holds(finding, seen(tmp_path / "d")) is False


@pytest.mark.parametrize("said", ["Connection reset by peer", "Unable to read from socket: Connection reset by peer"])
def test_the_call_that_first_sees_the_other_side_go_is_no_part_of_a_finding(tmp_path, said):
    finding = finding_of(seen(tmp_path / "a", failure="the migration ended as 'failed': Unable to write to socket: Broken pipe"))
    assert holds(finding, seen(tmp_path / "b", failure=f"the migration ended as 'failed': {said}")) is True
    assert holds(finding, seen(tmp_path / "c", failure="the migration ended as 'failed': No space left on device")) is False


def test_a_failure_is_known_by_what_a_qemu_said_first_not_by_what_the_source_made_of_it(tmp_path):
    def failing(place: str, error: str, failure: str) -> Observation:
        run = make_run(tmp_path / place, failure=failure)
        run.write_events([
            said(1, "m1", "-trace enable=x: warning: trace event 'x' does not exist"), said(2, "m1", "an error before the migration"),
            Event(t_ns=3, source="harness", name="migrate"), said(5, "m0", "Unable to write to socket: Broken pipe"), said(4, "m1", error),
        ])  # fmt: skip
        return Observation.of_run(run)

    def said(t_ns: int, machine: str, text: str) -> Event:
        return Event(t_ns=t_ns, source=machine, name="trace:qemu", data={"text": f"-system-x86_64: {text}"})

    finding = finding_of(failing("a", "Machine type received is 'pc-q35-10.0'", "Channel error: Input/output error"))
    assert finding.signs[0] == Sign(SignKind.FAILURE, "Machine type received is 'pc-qN-N'")
    assert holds(finding, failing("b", "Machine type received is 'pc-q35-10.0'", "Unable to write to socket: Broken pipe")) is True
    assert holds(finding, failing("c", "load of migration failed", "Channel error: Input/output error")) is False
    cut = finding_of(seen(tmp_path / "d", failure="Channel error: Input/output error"))  # a bundle without its timeline
    assert holds(cut, failing("e", "anything", "Unable to write to socket: Broken pipe")) is True


def test_an_unexpected_time_does_not_make_a_finding_of_a_loss_beside_it(tmp_path):
    finding = finding_of(seen(tmp_path, expect={"downtime.compute_ms": "< 1"}))
    assert [sign.key for sign in finding.signs] == ["downtime.compute_ms"]
    assert needs_timing(finding)


def test_a_run_that_was_inconclusive_tells_nothing(tmp_path):
    finding = finding_of(seen(tmp_path / "a"))
    dropped = facts_of().captures
    captures = {name: msgspec.structs.replace(point, dropped=1) for name, point in dropped.items()}
    assert holds(finding, seen(tmp_path / "b", captures=captures)) is None


# -- for people


def test_the_mail_is_72_columns_of_plain_text(tmp_path):
    notes = ("a note that is long enough to be wrapped, since it says at length what was seen, and then says so again",)
    text = mail_text(make_bundle(make_run(tmp_path, notes=notes), identity=IDENTITY, cache=tmp_path))
    assert max(map(len, text.splitlines())) <= 72
    assert text.isascii()
    for needed in ("demo: fail (completed)", "expectation not met: lost", "20 stranded at source", "switchover replay", "QEMU:", "7.2.22", "tcg"):
        assert needed in text


def test_the_command_makes_a_bundle_and_reads_it_unopened(tmp_path):
    run = make_run(tmp_path / "results")

    def switchover(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from harness.cli import main; main()", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = switchover("bundle", run.path)
    assert done.returncode == 0, done.stderr
    assert "expectation not met: lost" in done.stdout
    bundle = tmp_path / f"{RUN_ID}.tar.zst"
    why = switchover("why", bundle, "udp", "105")
    assert "stranded" in why.stdout, why.stderr
    again = switchover("analyze", bundle)
    assert (again.returncode, "20 stranded" in again.stdout) == (1, True), again.stderr
    assert bundle.read_bytes() == make_bundle(run, identity=_host(run), cache=tmp_path).data


def _host(run: RunDirectory) -> Identity:
    from harness.cli.bundle import host_identity

    return host_identity(run.path.parent)


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_every_shipped_scenario_may_come_from_a_bundle(name):
    assert scenario_problems(load_scenario(name)) == []
