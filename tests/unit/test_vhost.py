"""vhost workers are found once, as kernel threads and as threads of QEMU, with whose they are and how often they woke."""

from __future__ import annotations

from harness.host.vhost import VhostWatch, vhost_workers


def task(folder, name: str, *, state: str = "S (sleeping)", woken: int = 0, command: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "status").write_text(f"Name:\t{name}\nState:\t{state}\nvoluntary_ctxt_switches:\t{woken}\n")
    (folder / "cmdline").write_bytes("".join(f"{word}\0" for word in command).encode())


def process(proc, pid: int, name: str, **more) -> None:
    task(proc / str(pid), name, **more)
    task(proc / str(pid) / "task" / str(pid), name, **more)


def test_workers_of_both_kinds_are_found_once(tmp_path):
    process(tmp_path, 10, "qemu-system-x86", command=("qemu", "-name", "m0", "-S"))
    task(tmp_path / "10" / "task" / "11", "CPU 0/TCG")
    assert vhost_workers(proc=tmp_path) == []
    process(tmp_path, 20, "vhost-10", woken=7)
    process(tmp_path, 30, "qemu-system-x86", command=("qemu", "-name", "m1"))
    task(tmp_path / "30" / "task" / "31", "vhost-30", state="R (running)")
    process(tmp_path, 40, "vhost-worker")
    found = vhost_workers(proc=tmp_path)
    assert [(worker.task, worker.name, worker.machine, worker.idle, worker.wakeups) for worker in found] == [
        (20, "vhost-10", "m0", True, 7), (31, "vhost-30", "m1", False, 0)
    ]  # fmt: skip


def test_a_watch_counts_what_workers_did_since_it_saw_them(tmp_path):
    process(tmp_path, 10, "qemu-system-x86", command=("qemu", "-name", "m0"))
    process(tmp_path, 20, "vhost-10", woken=7)
    watch = VhostWatch(proc=tmp_path)
    assert watch.woken == {}
    assert watch.note == "vhost: no worker of the kernel was seen at work"
    process(tmp_path, 20, "vhost-10", woken=19)
    watch.look()
    for folder in ("10", "20"):  # the source ends
        for path in (tmp_path / folder).rglob("comm"):
            path.unlink()
    process(tmp_path, 30, "qemu-system-x86", command=("qemu", "-name", "m1"))
    process(tmp_path, 31, "vhost-30", woken=9)
    watch.look()
    assert watch.woken == {"m0": 12, "m1": 9}
    assert watch.figures == {"vhost_workers": 2.0, "vhost_woken_m0": 12.0, "vhost_woken_m1": 9.0}
    assert watch.note == "vhost: vhost-10 (m0) woke 12 times, vhost-30 (m1) woke 9 times"
