"""The CI files: what their systems' schemas allow, shell that parses, commands that the program takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import refusal

ROOT = Path(__file__).parents[2]
NIGHTLY = ROOT / "ci" / "nightly"
FILES = [(ROOT / "ci/github/nightly.yml", "vendor.github-workflows"), (ROOT / "ci/gitlab/nightly.yml", "vendor.gitlab-ci")]


def schema_problems(path: Path, schema: str) -> str:
    words = ["--builtin-schema", schema, *(["--data-transform", "gitlab-ci"] if "gitlab" in schema else []), str(path)]
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *words], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def scripts(path: Path) -> list[str]:
    """The shell of a file, one text for each step."""
    plain = yaml.safe_load(path.read_text())
    if "github" in path.parts:
        return [step["run"] for job in plain["jobs"].values() for step in job["steps"] if "run" in step]
    return ["\n".join([*job.get("before_script", []), *job["script"]]) for job in plain.values()]


@pytest.mark.parametrize(("path", "schema"), FILES, ids=lambda each: str(each)[-20:])
def test_the_systems_schema_allows_it(path, schema):
    assert schema_problems(path, schema) == ""


def test_a_wrong_file_is_noticed(tmp_path):
    wrong = tmp_path / "nightly.yml"
    wrong.write_text(FILES[0][0].read_text().replace("runs-on:", "runs-at:"))
    assert "runs-at" in schema_problems(wrong, FILES[0][1])


@pytest.mark.parametrize("text", [NIGHTLY.read_text(), *(text for path, _ in FILES for text in scripts(path))], ids=lambda text: text[:20].strip())
def test_the_shell_parses(text):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_commands_of_the_job_are_taken():
    lines = [line.strip() for line in NIGHTLY.read_text().splitlines() if re.match(r"\s*switchover ", line)]
    assert len(lines) == 5
    for line in lines:
        words = re.sub(r"\|\|.*|>.*", "", line).removeprefix("switchover ")
        words = words.replace('"${scenarios[@]}"', "udp-none udp-tap-handover").replace("$repeat", "3")
        assert refusal(words.strip()) is None, line


def test_both_install_what_the_job_needs_and_run_it():
    for path, _ in FILES:
        text = "\n".join(scripts(path))
        assert "ci/nightly" in text
        for package in ("qemu-system-x86", "seabios", "busybox-static", "iproute2", "libc6-dev"):
            assert package in text, (path.name, package)


# -- the job itself, with a program in place of switchover that does as it is told

STUB = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
case $1 in
  doctor) exit "${DOCTOR:-0}" ;;
  suite) mkdir -p "$RESULTS/T-suite-1"; echo "| table |" >"$RESULTS/T-suite-1/conformance.md"; echo "<testsuites/>" >"$RESULTS/T-suite-1/junit.xml"
         exit "${SUITE:-0}" ;;
  compare) mkdir -p "$RESULTS/T-campaign-1"; echo compared; exit "${COMPARE:-0}" ;;
  baseline) echo checked; exit "${CHECK:-0}" ;;
  report) exit 0 ;;
esac
"""


@pytest.fixture
def night(tmp_path):
    """Runs the job; its status, the calls it made and its summary."""
    program = tmp_path / "bin" / "switchover"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)

    def run(**told: str) -> tuple[int, list[str], str]:
        environment = {
            "PATH": f"{program.parent}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "RESULTS": str(tmp_path / "results"),
            "BASELINES": str(tmp_path / "baselines"), **told,
        }  # fmt: skip
        done = subprocess.run(["bash", NIGHTLY], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        summary = tmp_path / "results" / "summary.md"
        return done.returncode, (tmp_path / "calls").read_text().splitlines(), summary.read_text() if summary.is_file() else ""

    return run


def test_a_good_night_does_everything_and_says_so(night, tmp_path):
    status, calls, summary = night(QEMU="/opt/qemu", REPEAT="4", SCENARIOS="udp-none udp-netpass")
    assert status == 0
    assert [call.split()[0] for call in calls] == ["doctor", "suite", "compare", "baseline", "report"]
    assert "compare udp-none udp-netpass --set qemu.source=/opt/qemu --set qemu.destination=/opt/qemu --repeat 4" in calls[2]
    assert all(refusal(call.replace(str(tmp_path), "/x")) is None for call in calls)
    for words in ("| table |", "compared", "checked"):
        assert words in summary
    assert (tmp_path / "results" / "junit.xml").is_file()


@pytest.mark.parametrize(
    ("told", "status"), [({"SUITE": "1"}, 1), ({"SUITE": "3"}, 0), ({"CHECK": "1"}, 1), ({"CHECK": "1", "COMPARE": "5"}, 5), ({"SUITE": "2", "CHECK": "1"}, 2)]
)
def test_the_worst_of_its_steps_is_the_nights(night, told, status):
    found, calls, _ = night(**told)
    assert found == status
    assert len(calls) == 5, "a step that fails keeps no later one from being done"


def test_a_runner_that_can_not_do_it_ends_the_night_at_once(night):
    status, calls, summary = night(DOCTOR="3")
    assert status == 3
    assert len(calls) == 1
    assert "this runner can't do it" in summary
