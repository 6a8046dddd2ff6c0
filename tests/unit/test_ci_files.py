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
