"""Device costs and the ACK, from trace points as QEMU writes them."""

from __future__ import annotations

import pytest

from harness.analysis.device_cost import device_costs, held_us
from harness.analysis.switchover_ack import acknowledgement
from harness.model.costs import AckOrder, DevicesResult
from harness.report.table import device_table
from harness.vm.trace import parse_trace

BEGIN_NS, STOP_NS, RESUME_NS = 1_000_000_000, 1_100_000_000, 1_150_000_000


def trace(text: str, *, at_us: int = 1_120_000):
    """Events 10 us apart; a line that begins with @N stands at N microseconds."""
    lines = []
    for line in text.strip().splitlines():
        if line.startswith("@"):
            word, line = line.split(" ", 1)
            at_us = int(word[1:])
        lines.append(f"1@{at_us // 1_000_000}.{at_us % 1_000_000:06d}:{line}")
        at_us += 10
    return list(parse_trace("\n".join(lines), source="m"))


def costs(source: str, destination: str, **more) -> DevicesResult:
    return device_costs(
        trace(source), trace(destination), begin_ns=BEGIN_NS, stop_ns=STOP_NS, resume_ns=RESUME_NS, **more
    )


SAVES = """
vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=5000
vmstate_downtime_save type=non-iterable idstr=ram instance_id=0 downtime=1
vmstate_downtime_save type=non-iterable idstr=0000:00:02.0/virtio-net instance_id=0 downtime=800
vmstate_downtime_save type=non-iterable idstr=dma instance_id=1 downtime=7
"""
LOADS = """
@900000 vmstate_downtime_load type=non-iterable idstr=dma instance_id=1 downtime=99
@1120000 vmstate_downtime_load type=iterable idstr=ram instance_id=0 downtime=5500
virtio_load_phase virtio-net vdev 0x5a phase transport took 300000 ns
virtio_load_phase virtio-net vdev 0x5a phase queues took 2000 ns
virtio_load_phase virtio-net vdev 0x5a phase device took 19000 ns
virtio_load_phase virtio-net vdev 0x5a phase subsections took 400000 ns
virtio_net_iterative_load net0 stop full ns 900000
vmstate_downtime_load type=non-iterable idstr=0000:00:02.0/virtio-net instance_id=0 downtime=910
vmstate_downtime_load type=non-iterable idstr=dma instance_id=1 downtime=2
@1151000 virtio_vmstate_change virtio-net vdev 0x5a running 1 took 48000 ns
@1152000 vmstate_downtime_checkpoint dst-precopy-bh-vm-started
"""


def test_each_device_has_its_save_its_load_and_its_part_of_the_stop():
    found = costs(SAVES, LOADS, statuses=(("pre-switchover", STOP_NS), ("device", STOP_NS + 30_000_000), ("completed", RESUME_NS)))
    assert [d.name for d in found.devices] == ["ram", "0000:00:02.0/virtio-net", "dma"]
    ram, nic, dma = found.devices
    assert (ram.iterable, ram.save_us, ram.load_us) == (True, 5001, 5500)
    assert (nic.iterable, nic.nic, nic.save_us, nic.load_us, nic.start_us) == (False, "net0", 800, 910, 48)
    assert (dma.instance, dma.save_us, dma.load_us) == (1, 7, 2)  # and not the 99 of an earlier load
    assert (found.stop_us, found.held_us, found.to_start_us) == (50_000, 30_000, 2_000)
    assert nic.load_share == pytest.approx(910 / 20_000)
    assert (found.save_us, found.load_us, found.setup_load_us) == (5808, 6412, None)


def test_a_virtio_load_is_broken_down():
    nic = costs(SAVES, LOADS).devices[1]
    groups = nic.groups
    assert groups is not None
    assert (groups.virtqueues_us, groups.backend_us, groups.rest_us, groups.backend_start_us) == (402, 19, 489, 48)
    assert costs(SAVES, LOADS).devices[0].groups is None


def test_what_was_sent_at_the_setup_is_counted_apart():
    source = """
@1050000 virtio_net_iterative_save net0 setup full bytes 46123 ns 650000
@1120000 virtio_net_iterative_save net0 stop delta bytes 5 ns 120000
vmstate_downtime_save type=non-iterable idstr=0000:00:02.0/virtio-net-iterative instance_id=0 downtime=0
vmstate_downtime_save type=non-iterable idstr=0000:00:02.0/virtio-net instance_id=0 downtime=130
"""
    destination = """
@1060000 virtio_load_phase virtio-net vdev 0x5a phase transport took 500000 ns
virtio_net_iterative_load net0 setup full ns 1100000
@1120000 virtio_net_iterative_load net0 stop delta ns 80000
vmstate_downtime_load type=non-iterable idstr=0000:00:02.0/virtio-net instance_id=0 downtime=90
@1151000 virtio_vmstate_change virtio-net vdev 0x5a running 1 took 7000 ns
"""
    found = costs(source, destination)
    (nic,) = found.devices
    assert (nic.setup_save_us, nic.setup_load_us, nic.setup_bytes) == (650, 1100, 46123)
    assert (nic.save_us, nic.load_us, nic.all_load_us, nic.sent, nic.stop_bytes) == (130, 90, 1190, "delta", 5)
    assert (nic.load_phases_us, nic.groups, nic.start_us) == ({}, None, 7)
    assert found.setup_load_us == 1100


def test_a_state_loaded_twice_is_not_broken_down_twice():
    destination = """
virtio_load_phase virtio-net vdev 0x5a phase transport took 300000 ns
virtio_net_iterative_load net0 stop full ns 310000
virtio_load_phase virtio-net vdev 0x5a phase transport took 90000 ns
virtio_net_iterative_load net0 stop twice ns 100000
vmstate_downtime_load type=non-iterable idstr=0000:00:02.0/virtio-net instance_id=0 downtime=420
"""
    (nic,) = costs("", destination).devices
    assert (nic.load_us, nic.repeated_load_us, nic.load_phases_us) == (420, 100, {"transport": 300})
    groups = nic.groups
    assert groups is not None
    assert groups.rest_us == 320


def test_a_qemu_that_traces_nothing_is_named():
    found = costs("", "", versions=("7.2.22", "7.2.22"))
    assert found.devices == ()
    assert found.reason.startswith("the source's QEMU 7.2.22 does not trace vmstate_downtime_save; the destination's")
    assert found.reason in device_table(found)


def test_one_silent_side_leaves_the_other():
    found = costs("", LOADS, versions=("7.2.22", "10.0.13"))
    assert {d.save_us for d in found.devices} == {None}
    assert (found.save_us, found.load_us) == (None, 6412)
    assert found.reason == "the source's QEMU 7.2.22 does not trace vmstate_downtime_save"


def test_without_a_switchover_nothing_is_told():
    found = device_costs(trace(SAVES), [], begin_ns=BEGIN_NS, stop_ns=None, resume_ns=None)
    assert (found.devices, found.reason) == ((), "the guest did not change its machine")


def test_ram_that_comes_after_the_guest_runs_is_no_part_of_a_postcopy_stop():
    late = LOADS + "@1900000 vmstate_downtime_load type=iterable idstr=late instance_id=0 downtime=700000\n"
    assert "late" not in {d.name for d in costs(SAVES, late).devices}


def test_the_time_in_pre_switchover_is_summed():
    assert held_us((("active", 1), ("pre-switchover", 1000), ("device", 4000), ("completed", 9000))) == 3
    assert held_us((("active", 1), ("completed", 9000))) == 0


def test_the_table_shows_the_dearest_and_sums_up_the_rest():
    text = device_table(costs(SAVES, LOADS), most=2)
    assert "0000:00:02.0/virtio-net (net0)" in text
    assert "402 / 19 / 489" in text
    assert "1 others" in text
    assert "setup" not in text


# -- the ACK

RUNNING_ENDS = "runstate_set current_run_state 9 (running) new_state 7 (finish-migrate)"
ACKED = "source_return_path_thread_switchover_acked "


def ack(source: str, destination: str = "", stop_ns: int | None = STOP_NS):
    return acknowledgement(
        trace(source), trace(destination), begin_ns=BEGIN_NS, end_ns=RESUME_NS, stop_ns=stop_ns, source_version="10.0.13"
    )


def test_an_ack_before_the_stop():
    found = ack(
        f"@1090000 {ACKED}\n@1100000 {RUNNING_ENDS}",
        "@1040000 loadvm_state_switchover_ack_needed Switchover ack pending num=2\n"
        "@1050000 loadvm_approve_switchover Switchover ack pending num=1\n"
        "@1089000 loadvm_approve_switchover Switchover ack pending num=0\n"
        "@1120000 slow_migration_waited load at the stop waited 0 us",
    )
    assert (found.order, found.before_stop_ms, found.asked, found.waited_us) == (AckOrder.ACK_FIRST, 10.0, 2, 0)
    assert (found.sent_ns, found.received_ns, found.stop_from) == (1_089_000_000, 1_090_000_000, "runstate_set")
    assert len(found.approved_ns) == 2


def test_a_stop_before_the_ack_is_seen_even_if_the_event_came_later():
    found = ack(f"@1090000 {RUNNING_ENDS}\n@1095000 {ACKED}")
    assert (found.order, found.before_stop_ms) == (AckOrder.STOP_FIRST, -5.0)


def test_the_same_microsecond_is_no_proof():
    found = ack(f"@1090000 {ACKED}\n@1090000 {RUNNING_ENDS}")
    assert found.order is AckOrder.STOP_FIRST
    assert "same microsecond" in found.reason


def test_without_the_run_state_the_event_counts():
    found = ack(f"@1090000 {ACKED}")
    assert (found.stop_from, found.before_stop_ms) == ("STOP", 10.0)


def test_no_ack_and_no_stop():
    assert ack("", stop_ns=None).order is AckOrder.NO_ACK
    assert "no ACK was traced" in ack("").reason
    assert ack(f"@1090000 {ACKED}", stop_ns=None).order is AckOrder.NO_STOP


def test_an_ack_of_an_earlier_migration_does_not_count():
    assert ack(f"@500000 {ACKED}\n@1100000 {RUNNING_ENDS}").order is AckOrder.NO_ACK


# QEMU 11.1 with a machine type of its own: the source counts.
QUERY = "qemu_savevm_query_pending exact=0, final=0, precopy=0, stopcopy=0, postcopy=0, total=0, collected switchover ack pending={}, total switchover ack pending={}"


def test_an_ack_per_device_is_complete_when_none_is_missing():
    found = ack(
        f"@1010000 {QUERY.format(2, 2)}\n@1050000 {ACKED}switchover_ack_pending_num 1\n@1060000 {QUERY.format(0, 1)}\n"
        f"@1070000 {ACKED}switchover_ack_pending_num 0\n@1100000 {RUNNING_ENDS}",
        "@1049000 loadvm_approve_switchover Approver 0000:00:02.0/vfio\n@1069000 loadvm_approve_switchover Approver 0000:00:03.0/vfio",
    )
    assert (found.protocol, found.asked, found.received, found.order) == ("per-device", 2, 2, AckOrder.ACK_FIRST)
    assert (found.sent_ns, found.received_ns, found.before_stop_ms) == (1_069_000_000, 1_070_000_000, 30.0)


def test_a_stop_with_one_of_two_acks_missing_came_first():
    found = ack(
        f"@1010000 {QUERY.format(2, 2)}\n@1050000 {ACKED}switchover_ack_pending_num 1\n@1100000 {RUNNING_ENDS}\n"
        f"@1120000 {ACKED}switchover_ack_pending_num 0"
    )
    assert (found.order, found.before_stop_ms) == (AckOrder.STOP_FIRST, -20.0)
    never = ack(f"@1010000 {QUERY.format(2, 2)}\n@1050000 {ACKED}switchover_ack_pending_num 1\n@1100000 {RUNNING_ENDS}")
    assert never.order is AckOrder.NO_ACK


def test_a_device_that_asks_again_is_waited_for_again():
    found = ack(
        f"@1010000 {QUERY.format(1, 1)}\n@1050000 {ACKED}switchover_ack_pending_num 0\n@1060000 {QUERY.format(1, 1)}\n"
        f"@1070000 {ACKED}switchover_ack_pending_num 1\n@1080000 {ACKED}switchover_ack_pending_num 0\n@1100000 {RUNNING_ENDS}"
    )
    assert (found.asked, found.received_ns, found.order) == (2, 1_080_000_000, AckOrder.ACK_FIRST)
    unanswered = ack(
        f"@1050000 {ACKED}switchover_ack_pending_num 0\n@1060000 {QUERY.format(1, 1)}\n@1100000 {RUNNING_ENDS}\n"
        f"@1110000 {ACKED}switchover_ack_pending_num 0"
    )
    assert (unanswered.order, unanswered.before_stop_ms) == (AckOrder.STOP_FIRST, -10.0)


def test_with_none_that_asks_no_ack_is_awaited():
    found = ack(f"@1010000 {QUERY.format(0, 0)}\n@1100000 {RUNNING_ENDS}")
    assert (found.protocol, found.asked, found.order, found.reason) == ("per-device", 0, AckOrder.NOT_ASKED, "")


def test_the_counted_protocol_of_a_later_qemu():
    found = ack(
        f"@1010000 {QUERY.format(0, 0)}\n@1090000 {ACKED}switchover_ack_pending_num 0\n@1100000 {RUNNING_ENDS}",
        "@1040000 migration_request_switchover_ack_legacy Requester 0000:00:02.0/vfio, switchover_ack_pending_num_legacy 1\n"
        "@1089000 loadvm_approve_switchover_legacy Approver 0000:00:02.0/vfio, switchover_ack_pending_num_legacy 0",
    )
    assert (found.protocol, found.asked, found.sent_ns, found.order) == ("counted", 1, 1_089_000_000, AckOrder.ACK_FIRST)
    none = ack(f"@1090000 {ACKED}\n@1100000 {RUNNING_ENDS}", "@1040000 loadvm_switchover_ack_no_users_legacy ")
    assert (none.protocol, none.asked, none.order) == ("counted", 0, AckOrder.ACK_FIRST)
    unasked = ack(f"@1010000 {QUERY.format(0, 0)}\n@1090000 {ACKED}switchover_ack_pending_num 0\n@1100000 {RUNNING_ENDS}")
    assert (unasked.protocol, unasked.asked, unasked.order) == ("counted", 0, AckOrder.ACK_FIRST)
