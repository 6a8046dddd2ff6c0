"""The accelerator probe, tried for real."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from harness.errors import EnvironmentLackError
from harness.host.accel import choose_accelerator, probe_firmware, probe_kvm
from harness.model.scenario import Accelerator

needs_device = pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm to be tried")


def test_the_firmware_starts_at_the_reset_vector_and_ends_with_a_reset():
    image = probe_firmware()
    assert len(image) == 1 << 16
    assert image[0xFFF0] == 0xE9  # jmp
    assert b"\xb0\xfe\xe6\x64" in image  # the keyboard controller's reset


def test_the_trial_ends_in_time_and_says_why(run):
    began = time.monotonic()
    probe = run(probe_kvm(["qemu-system-x86_64"], deadline_s=1.0))
    assert time.monotonic() - began < 5
    assert probe.reason


@needs_device
def test_a_kvm_that_works_is_one_that_ended_well(run, tmp_path):
    """With a stand-in for QEMU that ends at once, and one that hangs."""
    for body, usable in (("exit 0", True), ("sleep 60", False), ("echo no such thing; exit 1", False)):
        program = tmp_path / "qemu"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        assert run(probe_kvm([str(program)], deadline_s=0.5)).usable is usable, body


@needs_device
def test_tcg_is_taken_as_it_is_and_a_demanded_kvm_must_work(run, tmp_path):
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho KVM kernel module is missing; exit 1\n")
    program.chmod(0o755)
    wish = {"argv_prefix": [str(program)], "cache": tmp_path}
    assert run(choose_accelerator(Accelerator.TCG, **wish))[0] == "tcg"
    assert run(choose_accelerator(Accelerator.AUTO, **wish)) == ("tcg", "KVM kernel module is missing")
    with pytest.raises(EnvironmentLackError, match="KVM kernel module is missing"):
        run(choose_accelerator(Accelerator.KVM, **wish))
