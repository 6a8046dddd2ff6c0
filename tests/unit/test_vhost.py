"""vhost workers are counted once, as kernel threads and as threads of QEMU."""

from __future__ import annotations

from harness.host.vhost import count_vhost_workers


def test_workers_of_both_kinds_are_counted_once(tmp_path):
    def process(pid: int, name: str, *threads: tuple[int, str]) -> None:
        for folder, comm in ((tmp_path / str(pid), name), *((tmp_path / str(pid) / "task" / str(tid), each) for tid, each in ((pid, name), *threads))):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "comm").write_text(f"{comm}\n")

    process(10, "qemu-system-x86", (11, "CPU 0/TCG"))
    assert count_vhost_workers(proc=tmp_path) == 0
    process(20, "vhost-10")
    process(30, "qemu-system-x86", (31, "vhost-30"), (32, "vhost-30"))
    assert count_vhost_workers(proc=tmp_path) == 3
