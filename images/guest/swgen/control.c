/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Orders while the program runs: signals, and lines written to DIR/control, a FIFO. A guest agent writes to a file in
 * milliseconds, where starting `kill` takes a tenth of a second in an emulated guest.
 */
#include "swgen.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

static int signal_fd = -1, fifo_fd = -1;
static char line[64];
static size_t line_length;

void control_open(const char *directory)
{
    char path[4096];
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGUSR2);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before the threads, which inherit it */
    signal(SIGPIPE, SIG_IGN);
    signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0)
        system_error("signalfd");
    snprintf(path, sizeof(path), "%s/control", directory);
    if (mkfifo(path, 0600) < 0 && errno != EEXIST)
        system_error("cannot make %s", path);
    /* For writing too: a FIFO that loses its last writer is readable for ever. */
    fifo_fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fifo_fd < 0)
        system_error("cannot open %s", path);
}

static enum order order_of_signal(void)
{
    struct signalfd_siginfo info;

    if (read(signal_fd, &info, sizeof(info)) != sizeof(info))
        return ORDER_NONE;
    return info.ssi_signo == SIGUSR2 ? ORDER_SEND : info.ssi_signo == SIGUSR1 ? ORDER_STOP : ORDER_END;
}

static enum order order_of_line(void)
{
    static const char *const words[] = {[ORDER_SEND] = "send", [ORDER_STOP] = "stop", [ORDER_END] = "end"};

    for (enum order order = ORDER_SEND; order <= ORDER_END; order++)
        if (strcmp(line, words[order]) == 0)
            return order;
    return ORDER_NONE;
}

/* One byte at a time: what follows the line is the next order. */
static enum order order_of_fifo(void)
{
    char byte;

    while (read(fifo_fd, &byte, 1) == 1) {
        if (byte == '\n') {
            line[line_length] = '\0';
            line_length = 0;
            return order_of_line();
        }
        if (line_length < sizeof(line) - 1)
            line[line_length++] = byte;
    }
    return ORDER_NONE;
}

enum order control_next(void)
{
    for (;;) {
        struct pollfd sources[] = {{.fd = signal_fd, .events = POLLIN}, {.fd = fifo_fd, .events = POLLIN}};
        enum order order = ORDER_NONE;

        if (poll(sources, 2, -1) < 0 && errno != EINTR)
            system_error("poll");
        if (sources[0].revents)
            order = order_of_signal();
        if (order == ORDER_NONE && sources[1].revents)
            order = order_of_fifo();
        if (order != ORDER_NONE)
            return order;
    }
}
