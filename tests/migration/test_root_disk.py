"""A guest that runs from a disk: it finds all of it at the destination too."""

from __future__ import annotations

import pytest

READ = "echo 3 >/proc/sys/vm/drop_caches; find /usr /etc /init -xdev -type f -exec md5sum {} + | md5sum"
"""Every byte of the root, from the disk and not from memory."""


@pytest.mark.nightly
@pytest.mark.switchover(root="disk")
@pytest.mark.parametrize("mode", ["precopy", "postcopy"])
def test_every_file_is_the_same_after_a_migration(guest_pair, udp, mode):
    assert "/dev/vda / ext4 ro" in guest_pair.succeed("cat /proc/mounts")
    before = guest_pair.succeed(READ)
    with udp(rate_pps=200, direction="to-guest") as stream:
        guest_pair.migrate(mode=mode)
        after = guest_pair.succeed(READ)
    assert after == before
    assert stream.ledger.ledger.unexplained == 0, stream.result.notes
