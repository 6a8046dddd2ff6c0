/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Clocks, numbers, errors. */
#include "swgen.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

void usage_error(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("swgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

void system_error(const char *format, ...)
{
    int error = errno;
    va_list arguments;

    va_start(arguments, format);
    fputs("swgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, ": %s\n", strerror(error));
    va_end(arguments);
    exit(1);
}

uint64_t parse_u64(const char *what, const char *text, uint64_t low, uint64_t high)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    /* strtoull takes "-1" and turns it round. */
    if (*text < '0' || *text > '9' || *end || errno || value < low || value > high)
        usage_error("%s: '%s' is not a whole number from %llu to %llu", what, text,
                    (unsigned long long)low, (unsigned long long)high);
    return value;
}

double parse_number(const char *what, const char *text, double low, double high)
{
    char *end;
    double value;

    errno = 0;
    value = strtod(text, &end);
    if (end == text || *end || errno || !isfinite(value) || value < low || value > high)
        usage_error("%s: '%s' is not a number from %g to %g", what, text, low, high);
    return value;
}

bool sleep_until(int64_t due_mono_ns, const atomic_bool *stop)
{
    const int64_t slice_ns = 20 * 1000 * 1000;

    for (;;) {
        int64_t now_ns = clock_ns(CLOCK_MONOTONIC), wake_ns = due_mono_ns;
        struct timespec wake;

        if (atomic_load_explicit(stop, memory_order_relaxed))
            return false;
        if (now_ns >= due_mono_ns)
            return true;
        /* Slices instead of a signal: no race between the look at `stop` and the sleep. */
        if (wake_ns - now_ns > slice_ns)
            wake_ns = now_ns + slice_ns;
        wake = (struct timespec){.tv_sec = wake_ns / NS_PER_S, .tv_nsec = wake_ns % NS_PER_S};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
    }
}

int write_all(int fd, const void *data, size_t length)
{
    const char *next = data;

    while (length) {
        ssize_t written = write(fd, next, length);

        if (written < 0) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        next += written;
        length -= (size_t)written;
    }
    return 0;
}
