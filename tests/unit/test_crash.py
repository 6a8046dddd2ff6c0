"""What a console says of its kernel's end."""

from __future__ import annotations

from harness.vm.crash import crash_in

PANICKED = """\
switchover: ready
[   34.562923] general protection fault, probably for non-canonical address 0x1004d0a5a1b0010: 0000 [#1] PREEMPT SMP NOPTI
[   34.569156] CPU: 0 PID: 0 Comm: swapper/0 Not tainted 6.1.0-56-cloud-amd64 #1  Debian 6.1.192-2
[   34.714113] Kernel panic - not syncing: Fatal exception in interrupt
[   34.714904] Rebooting in 1 seconds..
switchover: ready
"""


def test_a_panic_is_told_with_its_cause():
    assert crash_in(PANICKED) == (
        "general protection fault, probably for non-canonical address 0x1004d0a5a1b0010: 0000 [#1] PREEMPT SMP NOPTI; "
        "Kernel panic - not syncing: Fatal exception in interrupt"
    )


def test_a_panic_without_a_cause_is_told_by_itself():
    assert crash_in("[  1.0] Kernel panic - not syncing: Attempted to kill init!\r\n") == "Kernel panic - not syncing: Attempted to kill init!"


def test_a_kernel_that_only_complained_has_not_crashed():
    assert crash_in("[    3.1] BUG: workqueue lockup - pool cpus=0\nswitchover# ") is None
