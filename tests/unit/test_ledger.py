"""The ledger against drawn truths: whatever happened to the packets, it says exactly that."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.columns import ECHO_REPLY, ECHO_REQUEST, PROBE
from harness.analysis.evidence import Captures, DropCounter, Evidence, Fate, Place, StreamRecords
from harness.analysis.ledger import Ledger, account
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.records import RecordKind
from harness.analysis.sightings import NEVER, StopWindow
from harness.analysis.synthetic import capture_of, probe_batch, received_file, sent_file
from harness.errors import UsageError
from harness.model.scenario import Direction

# A slow example on a busy machine is no failure.
unhurried = settings(deadline=None)

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
STOP, RESUME = T0 + 20 * MS, T0 + 40 * MS

# What can happen to a packet, and the places that see it then: (peer's port, source's TAP, destination's TAP).
TO_GUEST = {
    "delivered": (Fate.DELIVERED, (1, 1, 0)),
    "carried": (Fate.DELIVERED, (1, 1, 1)),
    "at-destination": (Fate.DELIVERED, (1, 0, 1)),
    "stranded": (Fate.STRANDED_AT_SOURCE, (1, 1, 0)),
    "swallowed": (Fate.LOST_IN_QEMU, (1, 1, 0)),
    "peer-drop": (Fate.DROPPED_BY_HOST, (0, 0, 0)),
    "bridge-drop": (Fate.DROPPED_BY_HOST, (1, 0, 0)),
    "source-queue": (Fate.DROPPED_BY_HOST, (1, 1, 0)),
    "destination-queue": (Fate.DROPPED_BY_HOST, (1, 0, 1)),
    "guest-drop": (Fate.DROPPED_BY_GUEST, (1, 1, 0)),
    "nowhere": (Fate.UNEXPLAINED, (1, 1, 0)),
}
PLACES = {
    "peer-drop": Place.PEER,
    "bridge-drop": Place.BRIDGE,
    "source-queue": Place.SOURCE_TAP,
    "destination-queue": Place.DESTINATION_TAP,
    "guest-drop": Place.GUEST,
}


@dataclass
class Truth:
    """A drawn run to the guest: one happening a packet, extra copies, and the order of arrival."""

    happenings: list[str]
    arrivals: list[int]

    @property
    def fates(self) -> list[Fate]:
        return [TO_GUEST[each][0] for each in self.happenings]

    def which(self, *names: str) -> list[int]:
        return [seq for seq, each in enumerate(self.happenings) if each in names]


def happenings(*names: str) -> st.SearchStrategy[Truth]:
    """Runs in which only `names` happen; each counter's drops alone compete for the packets it can explain."""

    @st.composite
    def draw_truth(draw: st.DrawFn) -> Truth:
        drawn = draw(st.lists(st.sampled_from(names), min_size=1, max_size=60))
        arriving = [seq for seq, each in enumerate(drawn) if TO_GUEST[each][0] is Fate.DELIVERED]
        copies = draw(st.lists(st.sampled_from(arriving), max_size=10)) if arriving else []
        return Truth(drawn, draw(st.permutations(arriving + copies)))

    return draw_truth()


def evidence_of(truth: Truth) -> Evidence:
    """All that a perfect testbed would have seen of it."""
    captures = []
    for point in range(3):
        seen = [seq for seq, each in enumerate(truth.happenings) if TO_GUEST[each][1][point]]
        times = T0 + np.array(seen, dtype=np.int64) * MS + point
        captures.append(capture_of(probe_batch(seen, time_ns=times, direction=INBOUND if point == 0 else OUTBOUND)))
    counters = [
        DropCounter(name=happening, place=place, count=len(truth.which(happening)))
        for happening, place in PLACES.items()
    ]
    return Evidence(
        captures=Captures(peer=captures[0], source=captures[1], destination=captures[2]),
        stranded=frozenset((1, seq) for seq in truth.which("stranded")),
        swallowed=frozenset((1, seq) for seq in truth.which("swallowed")),
        passed=frozenset((1, seq) for seq in truth.which("carried")),
        counters=tuple(counters),
        windows=(StopWindow(stop_ns=STOP, resume_ns=RESUME),),
    )


def records_of(truth: Truth) -> StreamRecords:
    count = len(truth.happenings)
    return StreamRecords(
        name="udp",
        direction=Direction.TO_GUEST,
        sent=sent_file(range(count), sent_ns=T0 + np.arange(count) * MS),
        received=received_file(truth.arrivals, received_ns=np.arange(len(truth.arrivals))),
    )


def judge(truth: Truth, evidence: Evidence, *, late_ns: int | None = None) -> Ledger:
    return account([records_of(truth)], evidence=evidence, late_ns=late_ns)["udp"]


# Two things that share a counter's evidence cannot both be drawn: no one could tell them apart.
SOUND = ("delivered", "carried", "at-destination", "stranded", "swallowed", "peer-drop", "bridge-drop")


@unhurried
@given(
    happenings(*SOUND, "source-queue", "destination-queue")
    | happenings(*SOUND, "guest-drop")
    | happenings(*SOUND, "nowhere")
)
def test_says_what_was_drawn(truth: Truth) -> None:
    ledger = judge(truth, evidence_of(truth))
    assert [Fate(fate) for fate in ledger.fate] == truth.fates
    first_arrivals = list(dict.fromkeys(truth.arrivals))
    overtaken = {seq for at, seq in enumerate(first_arrivals) if any(other > seq for other in first_arrivals[:at])}
    assert set(np.flatnonzero(ledger.reordered)) == overtaken
    assert ledger.counts.reordered == len(overtaken)
    assert ledger.counts.duplicated == len(truth.arrivals) - len(first_arrivals)
    assert ledger.counts.passed == len(truth.which("carried"))
    assert ledger.counts.sent == len(truth.happenings)
    assert ledger.counts.sent == sum(getattr(ledger.counts, fate.label) for fate in Fate)
    assert ledger.problems == ()


@unhurried
@given(happenings(*SOUND, "guest-drop"))
def test_without_the_receivers_records_nothing_is_lost_or_delivered(truth: Truth) -> None:
    records = dataclasses.replace(records_of(truth), received=None)
    ledger = account([records], evidence=evidence_of(truth))["udp"]
    assert ledger.counts.unexplained == len(truth.happenings)
    assert ledger.problems


# The guest's drop comes first: a counter explains the earliest of the packets that only it could explain.
EACH = Truth(["delivered", "guest-drop", "stranded", "swallowed", "peer-drop", "bridge-drop", "carried"], [0, 6])


@pytest.mark.parametrize(
    ("missing", "unexplained"),
    [
        ("stranded", [2]),
        ("swallowed", [3]),
        ("peer-drop", [4]),
        ("bridge-drop", [5]),
        ("guest-drop", [1]),
        ("peer capture", [4, 5]),
        ("source capture", [1, 5]),
        ("destination capture dropped", [5]),
        ("peer capture dropped", [4]),
    ],
)
def test_each_kind_of_evidence_is_needed(missing: str, unexplained: list[int]) -> None:
    evidence = evidence_of(EACH)
    captures = evidence.captures
    assert captures.peer is not None
    assert captures.destination is not None
    if missing in ("stranded", "swallowed"):
        evidence = dataclasses.replace(evidence, **{missing: frozenset()})
    elif missing == "peer capture":
        evidence = dataclasses.replace(evidence, captures=dataclasses.replace(captures, peer=None))
    elif missing == "source capture":
        evidence = dataclasses.replace(evidence, captures=dataclasses.replace(captures, source=None))
    elif missing == "destination capture dropped":
        worse = dataclasses.replace(captures.destination, dropped=1)
        evidence = dataclasses.replace(evidence, captures=dataclasses.replace(captures, destination=worse))
    elif missing == "peer capture dropped":
        worse = dataclasses.replace(captures.peer, dropped=1)
        evidence = dataclasses.replace(evidence, captures=dataclasses.replace(captures, peer=worse))
    else:
        left = tuple(counter for counter in evidence.counters if counter.name != missing)
        evidence = dataclasses.replace(evidence, counters=left)
    whole, less = judge(EACH, evidence_of(EACH)), judge(EACH, evidence)
    assert whole.counts.unexplained == 0
    assert list(np.flatnonzero(less.fate == Fate.UNEXPLAINED)) == unexplained
    assert [f for s, f in enumerate(less.fate) if s not in unexplained] == [
        f for s, f in enumerate(whole.fate) if s not in unexplained
    ]
    if "dropped" in missing:
        assert any("dropped 1" in problem for problem in less.problems)


@unhurried
@given(st.integers(0, 12), st.integers(0, 12))
def test_a_counter_explains_no_more_than_it_counted(vanished: int, counted: int) -> None:
    truth = Truth(["delivered"] + ["bridge-drop"] * vanished, [0])
    counter = DropCounter(name="filter", place=Place.BRIDGE, count=counted)
    ledger = judge(truth, dataclasses.replace(evidence_of(truth), counters=(counter,)))
    assert ledger.counts.dropped_by_host == min(vanished, counted)
    assert ledger.counts.unexplained == max(vanished - counted, 0)
    assert bool(ledger.problems) == (0 < counted < vanished)


def test_a_counter_is_shared_by_all_streams() -> None:
    truth = Truth(["bridge-drop"] * 3, [])
    other = dataclasses.replace(
        records_of(truth), name="second", sent=sent_file(range(3), sent_ns=T0, stream=2),
        received=received_file([], received_ns=[], stream=2),
    )  # fmt: skip
    evidence = evidence_of(truth)
    seen = [probe_batch(range(3), time_ns=T0 + each, direction=INBOUND, stream=each) for each in (1, 2)]
    captures = dataclasses.replace(evidence.captures, peer=capture_of(*seen))
    counter = DropCounter(name="filter", place=Place.BRIDGE, count=4)
    ledgers = account(
        [records_of(truth), other], evidence=dataclasses.replace(evidence, captures=captures, counters=(counter,))
    )
    assert [ledgers[name].counts.dropped_by_host for name in ("udp", "second")] == [3, 1]
    assert [ledgers[name].counts.unexplained for name in ("udp", "second")] == [0, 2]


def test_a_counters_interval_limits_what_it_explains() -> None:
    truth = Truth(["bridge-drop"] * 10, [])
    counter = DropCounter(name="filter", place=Place.BRIDGE, count=10, start_ns=T0 + 3 * MS, end_ns=T0 + 5 * MS)
    ledger = judge(truth, dataclasses.replace(evidence_of(truth), counters=(counter,)))
    assert list(np.flatnonzero(ledger.fate == Fate.DROPPED_BY_HOST)) == [3, 4, 5]


def test_delivery_times_and_lateness_to_the_guest() -> None:
    truth = Truth(["delivered"] * 20 + ["carried"] * 20 + ["at-destination"] * 5, list(range(45)))
    ledger = judge(truth, evidence_of(truth), late_ns=5 * MS)
    sent = T0 + np.arange(45) * MS
    assert (ledger.delivered_ns[:20] == sent[:20] + 1).all()
    assert (ledger.delivered_ns[20:40] == RESUME).all()
    assert (ledger.delivered_ns[40:] == sent[40:] + 2).all()
    assert list(np.flatnonzero(ledger.late)) == list(range(20, 35))


@unhurried
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30_000), st.lists(st.integers(0, 30_000), max_size=2)), min_size=1, max_size=40))
def test_any_loss_delay_duplication_and_reordering_is_told(drawn: list[tuple[bool, int, list[int]]]) -> None:
    """Of each packet: whether the bridge dropped it, its delay and those of its copies in microseconds; the delays make the order."""
    late_ns = 10 * MS
    sent = T0 + np.arange(len(drawn)) * MS
    lost = [seq for seq, (dropped, _, _) in enumerate(drawn) if dropped]
    arrivals = sorted(
        (int(sent[seq]) + delay_us * 1000, seq)
        for seq, (dropped, first_us, more_us) in enumerate(drawn)
        if not dropped
        for delay_us in (first_us, *(first_us + extra for extra in more_us))
    )
    times, order = [time_ns for time_ns, _ in arrivals], [seq for _, seq in arrivals]
    evidence = Evidence(
        captures=Captures(
            peer=capture_of(probe_batch(range(len(drawn)), time_ns=sent, direction=INBOUND)),
            source=capture_of(probe_batch(order, time_ns=np.array(times, dtype=np.int64), direction=OUTBOUND)),
        ),
        counters=(DropCounter(name="filter", place=Place.BRIDGE, count=len(lost)),),
    )  # fmt: skip
    records = StreamRecords(
        name="udp", direction=Direction.TO_GUEST, sent=sent_file(range(len(drawn)), sent_ns=sent),
        received=received_file(order, received_ns=np.array(times, dtype=np.int64)),
    )  # fmt: skip
    ledger = account([records], evidence=evidence, late_ns=late_ns)["udp"]
    firsts = list(dict.fromkeys(order))
    assert list(np.flatnonzero(ledger.fate == Fate.DROPPED_BY_HOST)) == lost
    assert list(np.flatnonzero(ledger.fate == Fate.DELIVERED)) == sorted(firsts)
    assert list(np.flatnonzero(ledger.late)) == [seq for seq in sorted(firsts) if drawn[seq][1] * 1000 > late_ns]
    assert set(np.flatnonzero(ledger.reordered)) == {seq for at, seq in enumerate(firsts) if any(other > seq for other in firsts[:at])}
    assert ledger.counts.duplicated == len(order) - len(firsts)
    assert (ledger.counts.unexplained, ledger.problems) == (0, ())


# An echo: who saw the request, who saw the reply, and whether the guest recorded the request.
ECHO = {
    "answered": Fate.DELIVERED,
    "reply-dropped": Fate.LOST_ON_RETURN,
    "reply-unsent": Fate.LOST_ON_RETURN,
    "request-stranded": Fate.STRANDED_AT_SOURCE,
    "request-dropped": Fate.DROPPED_BY_HOST,
}


def judge_echo(drawn: list[str], *, responder: bool = True, tap_replies: bool = True) -> Ledger:
    def which(*names: str) -> list[int]:
        return [seq for seq, each in enumerate(drawn) if each in names]

    def at(seqs: list[int], probe: int, direction: int, offset: int):  # type: ignore[no-untyped-def]
        times = T0 + np.array(seqs, dtype=np.int64) * MS + offset
        return probe_batch(seqs, time_ns=times, direction=direction, probe=probe)

    everything = list(range(len(drawn)))
    reached_tap = which("answered", "reply-dropped", "reply-unsent", "request-stranded")
    on_tap = which("answered", "reply-dropped") if tap_replies else []
    peer = capture_of(at(everything, ECHO_REQUEST, INBOUND, 0), at(which("answered"), ECHO_REPLY, OUTBOUND, 500))
    source = capture_of(at(reached_tap, ECHO_REQUEST, OUTBOUND, 1), at(on_tap, ECHO_REPLY, INBOUND, 400))
    heard = which("answered", "reply-dropped", "reply-unsent")
    records = StreamRecords(
        name="echo",
        direction=Direction.ECHO,
        sent=sent_file(everything, sent_ns=T0),
        received=received_file(which("answered"), received_ns=T0, kind=RecordKind.REPLIES),
        responder=received_file(heard, received_ns=T0) if responder else None,
    )
    evidence = Evidence(
        captures=Captures(peer=peer, source=source),
        stranded=frozenset((1, seq) for seq in which("request-stranded")),
        counters=(DropCounter(name="tc", place=Place.BRIDGE, count=len(which("request-dropped"))),),
    )
    return account([records], evidence=evidence)["echo"]


@unhurried
@given(st.lists(st.sampled_from(sorted(ECHO)), min_size=1, max_size=40))
def test_echo_says_what_was_drawn(drawn: list[str]) -> None:
    ledger = judge_echo(drawn)
    assert [Fate(fate) for fate in ledger.fate] == [ECHO[each] for each in drawn]
    answered = ledger.fate == Fate.DELIVERED
    assert (ledger.delivered_ns[answered] - ledger.host_sent_ns[answered] == 500).all()


def test_echo_without_evidence_of_the_answer_is_unexplained() -> None:
    drawn = ["answered", "reply-dropped", "reply-unsent"]
    assert judge_echo(drawn, responder=False).counts.unexplained == 1
    assert judge_echo(drawn, tap_replies=False).counts.unexplained == 0
    assert judge_echo(drawn, responder=False, tap_replies=False).counts.unexplained == 2


FROM_GUEST = {
    "delivered": (Fate.DELIVERED, 1, 1),
    "bridge-drop": (Fate.DROPPED_BY_HOST, 1, 0),
    "peer-drop": (Fate.DROPPED_BY_GUEST, 1, 1),
    "guest-drop": (Fate.DROPPED_BY_GUEST, 0, 0),
    "swallowed": (Fate.LOST_IN_QEMU, 0, 0),
}


@unhurried
@given(st.lists(st.sampled_from(sorted(FROM_GUEST)), min_size=1, max_size=40), st.booleans())
def test_from_guest_says_what_was_drawn(drawn: list[str], evident: bool) -> None:
    def which(*names: str) -> list[int]:
        return [seq for seq, each in enumerate(drawn) if each in names]

    def capture(column: int, direction: int, offset: int):  # type: ignore[no-untyped-def]
        seqs = [seq for seq, each in enumerate(drawn) if FROM_GUEST[each][column]]
        times = T0 + np.array(seqs, dtype=np.int64) * MS + offset
        return capture_of(probe_batch(seqs, time_ns=times, direction=direction))

    records = StreamRecords(
        name="udp",
        direction=Direction.FROM_GUEST,
        sent=sent_file(range(len(drawn)), sent_ns=0),
        received=received_file(which("delivered"), received_ns=T0),
    )
    places = {"bridge-drop": Place.BRIDGE, "peer-drop": Place.PEER, "guest-drop": Place.GUEST}
    counters = tuple(
        DropCounter(
            name=name, place=place, count=len(which(name)), direction=Direction.FROM_GUEST, fate=FROM_GUEST[name][0]
        )
        for name, place in places.items()
    )
    evidence = Evidence(
        captures=Captures(peer=capture(2, OUTBOUND, 9), source=capture(1, INBOUND, 1), destination=capture_of()),
        swallowed=frozenset((1, seq) for seq in which("swallowed")) if evident else frozenset(),
        counters=counters if evident else (),
    )
    ledger = account([records], evidence=evidence)["udp"]
    expected = [FROM_GUEST[each][0] if evident or each == "delivered" else Fate.UNEXPLAINED for each in drawn]
    assert [Fate(fate) for fate in ledger.fate] == expected
    delivered = ledger.fate == Fate.DELIVERED
    assert (ledger.delivered_ns[delivered] == T0 + ledger.seq[delivered].astype(np.int64) * MS + 9).all()


def test_flooded_copies_count_as_duplicates_only_when_delivered_twice() -> None:
    both = capture_of(probe_batch([0, 1], time_ns=[T0, T0 + MS], direction=OUTBOUND))
    peer = capture_of(probe_batch([0, 1], time_ns=[T0, T0 + MS], direction=INBOUND))
    records = dataclasses.replace(
        records_of(Truth(["delivered", "delivered"], [])), received=received_file([0, 1, 0], received_ns=[1, 2, 3])
    )
    evidence = Evidence(captures=Captures(peer=peer, source=both, destination=both), stranded=frozenset({(1, 1)}))
    counts = account([records], evidence=evidence)["udp"].counts
    assert (counts.delivered, counts.duplicated, counts.reordered, counts.stranded_at_source) == (2, 1, 0, 0)


def test_refused_sends_are_not_sent() -> None:
    records = dataclasses.replace(
        records_of(Truth(["delivered"] * 3, [])),
        sent=sent_file([0, 1, 2], sent_ns=T0, errno=[0, 105, 0]),
        received=received_file([0, 2], received_ns=T0),
    )
    counts = account([records], evidence=Evidence())["udp"].counts
    assert (counts.sent, counts.delivered, counts.refused) == (2, 2, 1)


def test_a_stream_with_no_packet() -> None:
    ledger = judge(Truth([], []), evidence_of(Truth([], [])))
    assert ledger.counts.sent == 0
    assert ledger.counts.unexplained == 0
    with pytest.raises(UsageError, match="no packet 0 was sent"):
        ledger.explain(0)


def test_contradictions_are_errors_or_problems() -> None:
    truth = Truth(["delivered"], [0])
    records = records_of(truth)
    other_run = dataclasses.replace(records, received=received_file([0], received_ns=T0, nonce=2))
    with pytest.raises(UsageError, match="different streams or runs"):
        account([other_run], evidence=Evidence())
    twice = dataclasses.replace(records, sent=sent_file([0, 0], sent_ns=T0))
    with pytest.raises(UsageError, match="stands twice"):
        account([twice], evidence=Evidence())
    alien = dataclasses.replace(records, received=received_file([0, 7], received_ns=T0))
    ledger = account([alien], evidence=Evidence())["udp"]
    assert ledger.counts.alien == 1
    assert ledger.problems == ("1 deliveries carry numbers that were never sent",)


def test_a_clock_going_backwards_is_a_problem() -> None:
    truth = Truth(["delivered"], [0])
    peer = capture_of(probe_batch([0], time_ns=T0, direction=INBOUND), backward_ns=5 * MS)
    (problem,) = judge(truth, Evidence(captures=Captures(peer=peer))).problems
    assert "went back by 5.000 ms" in problem


def test_the_story_of_one_packet() -> None:
    truth = Truth(["delivered", "carried", "stranded"], [1, 0, 1])
    ledger = judge(truth, evidence_of(truth))
    carried = ledger.explain(1)
    assert carried.fate == "delivered"
    texts = [(line.clock, line.place, line.text) for line in carried.lines]
    assert texts[0] == ("sender", "sender", "sent")
    assert ("host", "destination's TAP", "seen") in texts
    assert ("receiver", "receiver", "recorded, 2 times") in texts
    assert ("host", "ledger", "carried over by the mechanism") in texts
    assert ledger.explain(2).reason == "read back from a TAP whose machine had ended"
    host_times = [line.time_ns for line in carried.lines if line.clock == "host" and line.time_ns is not None]
    assert host_times == sorted(host_times)
    assert NEVER not in host_times


def test_probes_of_other_streams_and_runs_are_not_seen() -> None:
    strangers = capture_of(
        probe_batch([0], time_ns=T0, direction=INBOUND, nonce=9),
        probe_batch([0], time_ns=T0, direction=INBOUND, stream=9),
        probe_batch([0], time_ns=T0, direction=INBOUND, probe=ECHO_REQUEST),
        probe_batch([0], time_ns=T0, direction=OUTBOUND, probe=PROBE),
    )
    ledger = judge(Truth(["delivered"], [0]), Evidence(captures=Captures(peer=strangers)))
    assert ledger.host_sent_ns[0] == NEVER
