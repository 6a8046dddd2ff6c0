/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * swgen reseed: fresh entropy from standard input into the kernel's generator.
 *
 * Guests that were started from one saved state have one and the same generator state; without this
 * they would pick the same nonces, ports and keys.
 */
#include "swgen.h"

#include <fcntl.h>
#include <linux/random.h>
#include <sys/ioctl.h>
#include <unistd.h>

int command_reseed(int argc, char **argv)
{
    struct {
        int entropy_bits, size;
        uint8_t bytes[512];
    } pool = {.size = 0};
    int fd;

    (void)argv;
    if (argc != 1)
        usage_error("reseed: takes no arguments, reads standard input");
    while ((size_t)pool.size < sizeof(pool.bytes)) {
        ssize_t got = read(STDIN_FILENO, pool.bytes + pool.size, sizeof(pool.bytes) - (size_t)pool.size);

        if (got < 0)
            system_error("reseed: standard input");
        if (got == 0)
            break;
        pool.size += (int)got;
    }
    if (pool.size < 16)
        usage_error("reseed: %d bytes are too few, 16 are the least", pool.size);
    pool.entropy_bits = pool.size * 8;
    fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0)
        system_error("reseed: RNDADDENTROPY");
    if (ioctl(fd, RNDRESEEDCRNG) < 0)
        system_error("reseed: RNDRESEEDCRNG");
    return 0;
}
