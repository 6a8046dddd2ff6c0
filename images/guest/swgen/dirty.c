/* SPDX-License-Identifier: GPL-2.0-or-later */
/* swgen dirty: dirties memory at a set rate until SIGTERM, so that a migration has something to chase. */
#include "swgen.h"

#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE_BYTES = 4096, MIB = 1 << 20 };

static atomic_bool stop;

static void on_term(int signal_number)
{
    (void)signal_number;
    atomic_store(&stop, true);
}

int command_dirty(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"rate-mib", required_argument, NULL, 'r'},
        {"size-mib", required_argument, NULL, 's'},
        {NULL, 0, NULL, 0},
    };
    const int64_t tick_ns = 5 * 1000 * 1000;
    double rate_mib = 0;
    uint64_t size_mib = 0, pages, next = 0, dirtied = 0;
    int64_t start_ns;
    uint8_t *memory;
    int option;

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == 'r')
            rate_mib = parse_number("--rate-mib", optarg, 1e-3, 1e6);
        else if (option == 's')
            size_mib = parse_u64("--size-mib", optarg, 1, UINT64_C(1) << 24);
        else
            return 2;
    }
    if (optind != argc || rate_mib == 0 || size_mib == 0)
        usage_error("dirty: --rate-mib N --size-mib M are needed");

    signal(SIGTERM, on_term);
    signal(SIGINT, on_term);
    memory = mmap(NULL, size_mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        system_error("dirty: %llu MiB", (unsigned long long)size_mib);
    pages = size_mib * MIB / PAGE_BYTES;
    status_line("ready");

    start_ns = clock_ns(CLOCK_MONOTONIC);
    for (uint64_t tick = 1; sleep_until(start_ns + (int64_t)tick * tick_ns, &stop); tick++) {
        int64_t elapsed_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
        uint64_t due = (uint64_t)((double)elapsed_ns / 1e9 * rate_mib * (MIB / PAGE_BYTES));
        uint64_t before = dirtied;

        /* At most one round per tick: more would dirty nothing that is not dirty. */
        for (; dirtied < due && dirtied - before < pages; dirtied++) {
            /* A value that never was there: a page of one repeated byte would be sent as such. */
            *(volatile uint64_t *)(memory + next * PAGE_BYTES + dirtied % 512 * 8) += dirtied + 1;
            next = next + 1 == pages ? 0 : next + 1;
        }
    }
    status_line("{\"dirtied_bytes\":%llu,\"elapsed_ns\":%lld}", (unsigned long long)dirtied * PAGE_BYTES,
                (long long)(clock_ns(CLOCK_MONOTONIC) - start_ns));
    return 0;
}
