/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Waiting on a connection without losing sight of it: every wait also takes the records that are due. */
#include "tcp.h"

#include <endian.h>
#include <errno.h>
#include <linux/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define SLICE_NS (INT64_C(20) * 1000 * 1000)

static int64_t to_real_ns(const struct stream *stream, int64_t mono_ns)
{
    return mono_ns + stream->session->start_real_ns - stream->session->start_mono_ns;
}

static int64_t sample_ns(const struct connection *connection)
{
    return connection->stream->options.sample_ms * INT64_C(1000000);
}

void connection_record(struct connection *connection, enum tcp_event event)
{
    const int64_t now_mono_ns = clock_ns(CLOCK_MONOTONIC);
    struct tcp_info info;
    socklen_t length = sizeof(info);
    struct tcp_record record;

    memset(&info, 0, sizeof(info)); /* an older kernel fills less of it */
    (void)getsockopt(connection->fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    record = (struct tcp_record){
        .time_real_ns = to_real_ns(connection->stream, now_mono_ns),
        .progress_real_ns = to_real_ns(connection->stream, connection->progress_mono_ns),
        .app_bytes = connection->app_bytes,
        .bytes_acked = info.tcpi_bytes_acked,
        .bytes_received = info.tcpi_bytes_received,
        .bytes_sent = info.tcpi_bytes_sent,
        .bytes_retrans = info.tcpi_bytes_retrans,
        .segs_out = info.tcpi_segs_out,
        .segs_in = info.tcpi_segs_in,
        .total_retrans = info.tcpi_total_retrans,
        .dsack_dups = info.tcpi_dsack_dups,
        .reord_seen = info.tcpi_reord_seen,
        .rcv_ooopack = info.tcpi_rcv_ooopack,
        .rto_us = info.tcpi_rto,
        .rtt_us = info.tcpi_rtt,
        .rttvar_us = info.tcpi_rttvar,
        .snd_cwnd = info.tcpi_snd_cwnd,
        .unacked = info.tcpi_unacked,
        .lost = info.tcpi_lost,
        .notsent_bytes = info.tcpi_notsent_bytes,
        .snd_wnd = info.tcpi_snd_wnd,
        .event = (uint8_t)event,
        .state = info.tcpi_state,
        .ca_state = info.tcpi_ca_state,
        .retransmits = info.tcpi_retransmits,
        .backoff = info.tcpi_backoff,
        .probes = info.tcpi_probes,
        .last_ack_recv_ms = info.tcpi_last_ack_recv,
        .delivered = info.tcpi_delivered,
    };
    record_append(&connection->stream->progress, &record);
    connection->next_sample_mono_ns = now_mono_ns + sample_ns(connection);
}

void connection_begin(struct connection *connection, struct stream *stream, int fd)
{
    *connection = (struct connection){.stream = stream, .fd = fd, .progress_mono_ns = clock_ns(CLOCK_MONOTONIC)};
    stream->tcp.connected = true;
    connection_record(connection, TCP_OPENED);
}

void connection_end(struct connection *connection, int error)
{
    struct stream *stream = connection->stream;

    connection_record(connection, error ? TCP_FAILED : TCP_CLOSED);
    stream->tcp.error = error;
    stream->tcp.closed = !error;
    stream->tcp.bytes = connection->app_bytes;
    close(connection->fd);
    connection->fd = -1;
}

void connection_progress(struct connection *connection, size_t bytes)
{
    const int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    const bool paused = now_ns - connection->progress_mono_ns >= sample_ns(connection) / 2;

    /* Before the new time is set: the record shows from when to when nothing moved. */
    connection->app_bytes += bytes;
    if (paused)
        connection_record(connection, TCP_RESUMED);
    connection->progress_mono_ns = now_ns;
}

short connection_wait(struct connection *connection, short events, int64_t until_mono_ns, const atomic_bool *stop)
{
    for (;;) {
        int64_t now_ns = clock_ns(CLOCK_MONOTONIC), wake_ns = until_mono_ns;
        struct pollfd fds = {.fd = connection->fd, .events = events};
        struct timespec pause;

        if (atomic_load_explicit(stop, memory_order_relaxed))
            return 0;
        if (now_ns >= connection->next_sample_mono_ns)
            connection_record(connection, TCP_SAMPLE);
        if (connection->next_sample_mono_ns < wake_ns)
            wake_ns = connection->next_sample_mono_ns;
        if (now_ns + SLICE_NS < wake_ns)
            wake_ns = now_ns + SLICE_NS;
        wake_ns = wake_ns > now_ns ? wake_ns - now_ns : 0;
        pause = (struct timespec){.tv_sec = wake_ns / NS_PER_S, .tv_nsec = wake_ns % NS_PER_S};
        if (ppoll(&fds, 1, &pause, NULL) > 0)
            return fds.revents;
        if (now_ns >= until_mono_ns)
            return 0;
    }
}

/* Why a wait came back without what it waited for. */
static int give_up(int64_t until_mono_ns, const atomic_bool *stop)
{
    if (atomic_load(stop))
        return ECANCELED;
    return clock_ns(CLOCK_MONOTONIC) >= until_mono_ns ? ETIMEDOUT : 0;
}

int connection_read(struct connection *connection, void *data, size_t length, int64_t until_mono_ns,
                    const atomic_bool *stop)
{
    uint8_t *next = data;

    while (length) {
        ssize_t got = recv(connection->fd, next, length, MSG_DONTWAIT);

        if (got > 0) {
            next += got;
            length -= (size_t)got;
        } else if (got == 0) {
            return ECONNABORTED;
        } else if (errno != EAGAIN && errno != EINTR) {
            return errno;
        } else if (!connection_wait(connection, POLLIN, until_mono_ns, stop)) {
            int error = give_up(until_mono_ns, stop);

            if (error)
                return error;
        }
    }
    return 0;
}

int connection_write(struct connection *connection, const void *data, size_t length, int64_t until_mono_ns,
                     const atomic_bool *stop)
{
    const uint8_t *next = data;

    while (length) {
        ssize_t sent = send(connection->fd, next, length, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent >= 0) {
            next += sent;
            length -= (size_t)sent;
        } else if (errno != EAGAIN && errno != EINTR) {
            return errno;
        } else if (!connection_wait(connection, POLLOUT, until_mono_ns, stop)) {
            int error = give_up(until_mono_ns, stop);

            if (error)
                return error;
        }
    }
    return 0;
}

/* ---- the bulk stream's bytes ---- */

static uint8_t pattern_byte(size_t at)
{
    return (uint8_t)(at * 167 + (at >> 8) * 13);
}

static const uint8_t *block_pattern(void)
{
    static _Thread_local uint8_t block[BLOCK_BYTES];
    static _Thread_local bool filled;

    for (size_t at = 0; !filled && at < BLOCK_BYTES; at++)
        block[at] = pattern_byte(at);
    filled = true;
    return block;
}

void blocks_fill(uint8_t *data, size_t length, uint64_t first_block)
{
    for (size_t at = 0; at < length; at += BLOCK_BYTES, first_block++) {
        uint64_t number = htobe64(first_block);

        memcpy(data + at, block_pattern(), BLOCK_BYTES);
        memcpy(data + at, &number, sizeof(number));
    }
}

bool blocks_intact(const uint8_t *data, size_t length, uint64_t offset)
{
    while (length) {
        const uint64_t number = htobe64(offset / BLOCK_BYTES);
        const size_t at = offset % BLOCK_BYTES;
        size_t part = BLOCK_BYTES - at;
        const uint8_t *expected = block_pattern() + at;

        if (at < sizeof(number)) {
            expected = (const uint8_t *)&number + at;
            part = sizeof(number) - at;
        }
        if (part > length)
            part = length;
        if (memcmp(data, expected, part))
            return false;
        data += part;
        length -= part;
        offset += part;
    }
    return true;
}
