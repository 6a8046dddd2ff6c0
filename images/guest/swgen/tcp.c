/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both ends of a TCP stream share. */
#include "tcp.h"

#include <errno.h>
#include <linux/tcp.h>
#include <string.h>

const atomic_bool never_stop = false;

int64_t after_ms(int64_t milliseconds)
{
    return clock_ns(CLOCK_MONOTONIC) + milliseconds * 1000000;
}

void tcp_prepare(const struct stream *stream, int fd)
{
    const struct stream_options *options = &stream->options;
    int on = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (options->congestion[0] && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, options->congestion,
                                             (socklen_t)strlen(options->congestion)) < 0)
        system_error("stream %u: congestion control %s", options->id, options->congestion);
    if (options->ifname[0] &&
        setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, options->ifname, (socklen_t)strlen(options->ifname) + 1) < 0)
        system_error("stream %u: binding to interface %s", options->id, options->ifname);
}

void address_set_port(struct address *address, uint16_t port, unsigned int scope)
{
    if (address->family == AF_INET) {
        address->in4.sin_port = htons(port);
    } else {
        address->in6.sin6_port = htons(port);
        address->in6.sin6_scope_id = scope;
    }
}

/* ---- messages (request and reply) ---- */

int inbox_drain(struct connection *connection, struct inbox *inbox,
                int (*take)(struct connection *connection, uint8_t *message))
{
    for (;;) {
        ssize_t got = recv(connection->fd, inbox->data + inbox->used, inbox->size - inbox->used, MSG_DONTWAIT);
        int error;

        if (got == 0)
            return ECONNABORTED;
        if (got < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : errno;
        connection_progress(connection, (size_t)got);
        inbox->used += (size_t)got;
        if (inbox->used == inbox->size) {
            inbox->used = 0;
            error = take(connection, inbox->data);
            if (error)
                return error;
        }
    }
}

void message_record(struct stream *stream, const uint8_t *message, size_t size, const struct probe *probe)
{
    struct received_record record = {
        .seq = probe->seq,
        .sent_real_ns = probe->sent_real_ns,
        .received_real_ns = clock_ns(CLOCK_REALTIME),
        .udp_length = (uint32_t)size,
        .flags = probe->flags | RECEIVED_NO_KERNEL_TIME,
    };

    if (!probe_intact(message, size, probe->seq)) {
        record.flags |= RECEIVED_CORRUPT;
        stream->corrupt++;
    }
    record_append(&stream->received, &record);
}
