/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The clients of TCP streams: bulk, request and idle. */
#include "tcp.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONNECT_TIMEOUT_MS = 10000 };

static int connect_client(struct stream *stream)
{
    struct stream_options *options = &stream->options;
    const unsigned int scope = options->ifname[0] ? if_nametoindex(options->ifname) : 0;
    const struct session *session = stream->session;
    int fd = socket(options->destination.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int64_t until_ns = after_ms(CONNECT_TIMEOUT_MS);
    int error = 0;
    socklen_t length = sizeof(error);

    if (fd < 0)
        return -errno;
    tcp_prepare(stream, fd);
    address_set_port(&options->destination, options->port, scope);
    if (options->source.length && bind(fd, &options->source.any, options->source.length) < 0)
        system_error("stream %u: bind", options->id);
    if (connect(fd, &options->destination.any, options->destination.length) < 0 && errno != EINPROGRESS) {
        error = errno;
        close(fd);
        return -error;
    }
    for (;;) {
        struct pollfd fds = {.fd = fd, .events = POLLOUT};

        if (poll(&fds, 1, 20) > 0)
            break;
        if (atomic_load(&session->stop_sending) || clock_ns(CLOCK_MONOTONIC) > until_ns) {
            close(fd);
            return -ETIMEDOUT;
        }
    }
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        close(fd);
        return -error;
    }
    return fd;
}

static int say_hello(struct connection *connection, enum hello hello)
{
    const struct stream *stream = connection->stream;
    const struct probe probe = {
        .flags = (uint16_t)hello,
        .stream = stream->options.id,
        .nonce = stream->session->nonce,
        .seq = stream->options.size,
        .sent_real_ns = clock_ns(CLOCK_REALTIME),
    };
    uint8_t bytes[HELLO_BYTES];

    probe_encode(bytes, &probe);
    return connection_write(connection, bytes, sizeof(bytes), after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
}

/* Writes until told to stop, then has the server confirm what it got. */
static int run_bulk(struct connection *connection)
{
    struct stream *stream = connection->stream;
    const struct stream_options *options = &stream->options;
    const atomic_bool *stop = &stream->session->stop_sending;
    const size_t size = (options->size + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
    uint8_t *data = malloc(size), confirmation[CONFIRM_BYTES];
    size_t left = 0;
    int error = 0;

    if (!data)
        return ENOMEM;
    for (uint64_t write_count = 0; !error && !atomic_load(stop);) {
        ssize_t sent;

        if (!left) {
            if (options->count && write_count == options->count)
                break;
            blocks_fill(data, size, connection->app_bytes / BLOCK_BYTES);
            left = size;
            if (options->rate_pps > 0) {
                int64_t due_ns = stream_due_ns(stream, write_count), late_ns;

                /* Only an error or the end of the connection can make it readable here. */
                while (clock_ns(CLOCK_MONOTONIC) < due_ns && !atomic_load(stop))
                    if (connection_wait(connection, 0, due_ns, stop))
                        break;
                late_ns = clock_ns(CLOCK_MONOTONIC) - due_ns;
                if (late_ns > stream->late_max_ns)
                    stream->late_max_ns = late_ns;
            }
            write_count++;
        }
        sent = send(connection->fd, data + size - left, left, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            left -= (size_t)sent;
            connection_progress(connection, (size_t)sent);
        } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            error = errno;
        } else {
            connection_wait(connection, POLLOUT, after_ms(1000), stop);
        }
        /* A fast connection never waits: samples are due all the same. */
        if (clock_ns(CLOCK_MONOTONIC) >= connection->next_sample_mono_ns)
            connection_record(connection, TCP_SAMPLE);
    }
    if (!error && shutdown(connection->fd, SHUT_WR) < 0)
        error = errno;
    if (!error)
        error = connection_read(connection, confirmation, sizeof(confirmation), after_ms(FAREWELL_TIMEOUT_MS),
                                &never_stop);
    if (!error) {
        uint64_t got;

        memcpy(&got, confirmation, sizeof(got));
        stream->tcp.confirmed_bytes = be64toh(got);
    }
    free(data);
    return error;
}

static int take_reply(struct connection *connection, uint8_t *message)
{
    struct stream *stream = connection->stream;
    struct probe probe;

    if (!probe_decode(message, stream->options.size, &probe) || probe.flags != PROBE_ECHO_REPLY)
        return EBADMSG;
    message_record(stream, message, stream->options.size, &probe);
    return 0;
}

/* Sends requests on schedule, whether or not the last was answered; then waits for the answers still due. */
static int run_requests(struct connection *connection)
{
    struct stream *stream = connection->stream;
    const struct stream_options *options = &stream->options;
    const struct session *session = stream->session;
    const int64_t real_less_mono_ns = session->start_real_ns - session->start_mono_ns;
    struct inbox inbox = {.data = malloc(options->size), .size = options->size};
    uint8_t *request = malloc(options->size);
    uint64_t seq = 0;
    int error = inbox.data && request ? 0 : ENOMEM;
    int64_t until_ns;

    for (; !error && !atomic_load(&session->stop_sending) && (!options->count || seq < options->count);) {
        int64_t due_ns = stream_due_ns(stream, seq), late_ns = clock_ns(CLOCK_MONOTONIC) - due_ns;

        if (late_ns >= 0) {
            const struct probe probe = {
                .flags = PROBE_ECHO_REQUEST,
                .stream = options->id,
                .nonce = session->nonce,
                .seq = seq,
                .sent_real_ns = clock_ns(CLOCK_REALTIME),
            };
            struct sent_record record = {
                .seq = seq, .due_real_ns = due_ns + real_less_mono_ns, .sent_real_ns = probe.sent_real_ns};

            if (late_ns > stream->late_max_ns)
                stream->late_max_ns = late_ns;
            probe_encode(request, &probe);
            probe_fill(request, options->size, seq++);
            /* A request that was begun is finished, or the messages would run into one another. */
            error = connection_write(connection, request, options->size, after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
            record.error = error;
            record_append(&stream->sent, &record);
            stream->sent_count += !error;
            stream->send_errors += error != 0;
        }
        if (!error)
            error = inbox_drain(connection, &inbox, take_reply);
        if (!error)
            connection_wait(connection, POLLIN, stream_due_ns(stream, seq), &session->stop_sending);
    }
    until_ns = after_ms(FAREWELL_TIMEOUT_MS);
    while (!error && stream->received.count + stream->received.overflowed < stream->sent_count) {
        if (!connection_wait(connection, POLLIN, until_ns, &never_stop))
            error = ETIMEDOUT;
        else
            error = inbox_drain(connection, &inbox, take_reply);
    }
    free(inbox.data);
    free(request);
    return error;
}

/* Says nothing until the end, then sees whether one byte still gets there and back. */
static int run_idle(struct connection *connection)
{
    struct stream *stream = connection->stream;
    uint8_t byte = 0x5A, answer = 0;
    int64_t start_ns;
    int error = 0;

    while (!error && !atomic_load(&stream->session->stop_sending)) {
        /* The server has nothing to say: whatever makes it readable is its end. */
        if (connection_wait(connection, POLLIN, after_ms(1000), &stream->session->stop_sending)) {
            ssize_t got = recv(connection->fd, &answer, 1, MSG_DONTWAIT);

            if (got >= 0)
                error = got ? EBADMSG : ECONNABORTED;
            else if (errno != EAGAIN && errno != EINTR)
                error = errno;
        }
    }
    start_ns = clock_ns(CLOCK_MONOTONIC);
    if (!error)
        error = connection_write(connection, &byte, 1, after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
    if (!error)
        error = connection_read(connection, &answer, 1, after_ms(FAREWELL_TIMEOUT_MS), &never_stop);
    if (!error && answer != byte)
        error = EBADMSG;
    if (!error) {
        stream->tcp.round_trip_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
        connection_progress(connection, 1);
    }
    return error;
}

void *tcp_client_loop(void *argument)
{
    struct stream *stream = argument;
    struct connection connection;
    enum role role = stream->options.role;
    int fd = connect_client(stream), error;

    if (fd < 0) {
        stream->tcp.error = -fd;
        return NULL;
    }
    connection_begin(&connection, stream, fd);
    error = say_hello(&connection, role == ROLE_TCP_BULK      ? HELLO_BULK
                                   : role == ROLE_TCP_REQUEST ? HELLO_REQUEST
                                                              : HELLO_IDLE);
    if (!error)
        error = role == ROLE_TCP_BULK ? run_bulk(&connection)
                : role == ROLE_TCP_REQUEST ? run_requests(&connection) : run_idle(&connection);
    connection_end(&connection, error);
    return NULL;
}
