/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The server of a TCP stream, which does what its client's first bytes ask for. */
#include "tcp.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

enum { HELLO_TIMEOUT_MS = 2000, READ_BYTES = 256 << 10 };

void tcp_listen(struct stream *stream)
{
    struct stream_options *options = &stream->options;
    const sa_family_t family = options->source.length ? options->source.family : AF_INET;
    struct address local = options->source;
    unsigned int scope = options->ifname[0] ? if_nametoindex(options->ifname) : 0;

    if (!local.length)
        local = (struct address){.family = family, .length = sizeof(local.in4)};
    stream->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (stream->fd < 0)
        system_error("stream %u: socket", options->id);
    tcp_prepare(stream, stream->fd);
    address_set_port(&local, options->port, scope);
    if (bind(stream->fd, &local.any, local.length) < 0 || listen(stream->fd, 8) < 0)
        system_error("stream %u: listening on port %u", options->id, options->port);
}

static int serve_bulk(struct connection *connection)
{
    struct stream *stream = connection->stream;
    const atomic_bool *stop = &stream->session->stop_receiving;
    uint8_t *data = malloc(READ_BYTES);
    int error = data ? 0 : ENOMEM;
    uint64_t total;

    while (!error) {
        ssize_t got = recv(connection->fd, data, READ_BYTES, MSG_DONTWAIT);

        if (got == 0)
            break;
        if (got > 0) {
            if (!blocks_intact(data, (size_t)got, connection->app_bytes))
                stream->corrupt++;
            connection_progress(connection, (size_t)got);
        } else if (errno != EAGAIN && errno != EINTR) {
            error = errno;
        } else if (!connection_wait(connection, POLLIN, after_ms(1000), stop) && atomic_load(stop)) {
            error = ECANCELED;
        }
        if (clock_ns(CLOCK_MONOTONIC) >= connection->next_sample_mono_ns)
            connection_record(connection, TCP_SAMPLE);
    }
    total = htobe64(connection->app_bytes);
    if (!error)
        error = connection_write(connection, &total, sizeof(total), after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
    free(data);
    return error;
}

static int take_request(struct connection *connection, uint8_t *message)
{
    struct stream *stream = connection->stream;
    struct probe probe;
    int error;

    if (!probe_decode(message, stream->options.size, &probe) || probe.flags != PROBE_ECHO_REQUEST)
        return EBADMSG;
    message_record(stream, message, stream->options.size, &probe);
    probe.flags = PROBE_ECHO_REPLY;
    probe_encode(message, &probe);
    error = connection_write(connection, message, stream->options.size, after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
    stream->sent_count += !error;
    stream->reply_errors += error != 0;
    return error;
}

static int serve_requests(struct connection *connection)
{
    struct stream *stream = connection->stream;
    const atomic_bool *stop = &stream->session->stop_receiving;
    struct inbox inbox = {.data = malloc(stream->options.size), .size = stream->options.size};
    int error = inbox.data ? 0 : ENOMEM;

    while (!error) {
        error = inbox_drain(connection, &inbox, take_request);
        if (!error && !connection_wait(connection, POLLIN, after_ms(1000), stop) && atomic_load(stop))
            error = ECANCELED;
    }
    free(inbox.data);
    /* The client ends between two messages, or not in order. */
    return error == ECONNABORTED && !inbox.used ? 0 : error;
}

static int serve_idle(struct connection *connection)
{
    const atomic_bool *stop = &connection->stream->session->stop_receiving;
    uint8_t byte;
    int error;

    do
        error = connection_read(connection, &byte, 1, after_ms(1000), stop);
    while (error == ETIMEDOUT);
    if (error)
        return error;
    connection_progress(connection, 1);
    return connection_write(connection, &byte, 1, after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
}

/* One connection from its hello to its end; one that is not of this stream and run is only counted. */
static void serve_connection(struct stream *stream, int fd)
{
    struct connection connection;
    uint8_t bytes[HELLO_BYTES];
    struct probe hello;
    int error;

    tcp_prepare(stream, fd);
    connection = (struct connection){.stream = stream, .fd = fd, .next_sample_mono_ns = INT64_MAX};
    error = connection_read(&connection, bytes, sizeof(bytes), after_ms(HELLO_TIMEOUT_MS),
                            &stream->session->stop_receiving);
    if (error || !probe_decode(bytes, sizeof(bytes), &hello) || hello.nonce != stream->session->nonce ||
        hello.stream != stream->options.id || hello.flags < HELLO_BULK || hello.flags > HELLO_IDLE ||
        hello.seq < PROBE_BYTES || hello.seq > 1 << 20) {
        stream->foreign++;
        close(fd);
        return;
    }
    stream->options.size = (uint32_t)hello.seq;
    connection_begin(&connection, stream, fd);
    error = hello.flags == HELLO_BULK      ? serve_bulk(&connection)
            : hello.flags == HELLO_REQUEST ? serve_requests(&connection)
                                           : serve_idle(&connection);
    connection_end(&connection, error);
}

void *tcp_serve_loop(void *argument)
{
    struct stream *stream = argument;

    while (!atomic_load(&stream->session->stop_receiving)) {
        struct pollfd fds[] = {{.fd = stream->fd, .events = POLLIN},
                               {.fd = stream->session->wake_fd, .events = POLLIN}};
        int fd;

        poll(fds, 2, -1);
        fd = accept4(stream->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (stream->tcp.connected) { /* one client per stream and run */
            stream->foreign++;
            close(fd);
        } else {
            serve_connection(stream, fd);
        }
    }
    return NULL;
}
