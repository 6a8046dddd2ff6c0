"""From the files of a run to figures: pure functions, no host, no QEMU.

| module | what it does |
|---|---|
| `pcapng` | reads and writes capture files, a batch of packets at a time |
| `columns` | captured frames as numpy columns |
| `records` | the traffic generator's record files |
| `ring` | what a guest really received, from its receive ring's used index |
| `sightings` | when each probe was seen at each capture point |
| `ledger` | what became of every probe, decided by evidence |
| `outages` | delivery times, gaps, network downtime |
| `phases`, `announce` | the phases of a migration, the guest's announcements |
| `tcp` | retransmissions, stalls and recovery of TCP connections |
| `estimators` | what other people's downtime formulas make of the same data |
| `calibration`, `statistics` | what a figure is worth: resolution, intervals, paired differences |
| `permutation`, `significance` | whether arms differ: permutation tests, many metrics, early stopping, what n runs can show |

Times are integer nanoseconds of the host's CLOCK_REALTIME unless a name says otherwise.
"""
