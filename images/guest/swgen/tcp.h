/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One TCP connection that is watched while it works. */
#ifndef SWGEN_TCP_H
#define SWGEN_TCP_H

#include "stream.h"

enum { BLOCK_BYTES = 4096, HELLO_BYTES = PROBE_BYTES, CONFIRM_BYTES = 8 };

/* The flags of the hello, a probe header that opens each connection; its seq is the size of a request. */
enum hello { HELLO_BULK = 0x10, HELLO_REQUEST = 0x11, HELLO_IDLE = 0x12 };

struct connection {
    struct stream *stream;
    int fd; /* non-blocking */
    uint64_t app_bytes;
    int64_t progress_mono_ns, next_sample_mono_ns;
};

/* ---- connection.c ---- */

/* Takes over a connected socket and writes its first record. */
void connection_begin(struct connection *connection, struct stream *stream, int fd);
/* Writes the last record, closes the socket and keeps `error` (0: it ended in order). */
void connection_end(struct connection *connection, int error);
void connection_record(struct connection *connection, enum tcp_event event);
/* Says that app_bytes grew by `bytes`. */
void connection_progress(struct connection *connection, size_t bytes);

/*
 * Sleeps until the socket is ready for one of `events` (POLLIN, POLLOUT), or `until` (CLOCK_MONOTONIC), or `stop`
 * is set (seen within 20 ms); writes a record whenever one is due. Returns the events, 0 for the others.
 */
short connection_wait(struct connection *connection, short events, int64_t until_mono_ns, const atomic_bool *stop);

/* Both return 0, or an errno: ETIMEDOUT at `until`, ECANCELED if stopped, ECONNABORTED at an early end. */
int connection_read(struct connection *connection, void *data, size_t length, int64_t until_mono_ns,
                    const atomic_bool *stop);
int connection_write(struct connection *connection, const void *data, size_t length, int64_t until_mono_ns,
                     const atomic_bool *stop);

/* The bulk stream's bytes: blocks of 4096, each its number (big endian) and then a fixed pattern. */
void blocks_fill(uint8_t *data, size_t length, uint64_t first_block);
bool blocks_intact(const uint8_t *data, size_t length, uint64_t offset);

/* ---- tcp.c: what both ends share ---- */

/*
 * An end waits this long for the other's last word: longer than any retransmission timeout that a test has a
 * reason to sit out.
 */
enum { FAREWELL_TIMEOUT_MS = 5000 };

extern const atomic_bool never_stop;

int64_t after_ms(int64_t milliseconds); /* on CLOCK_MONOTONIC */
void tcp_prepare(const struct stream *stream, int fd);
void address_set_port(struct address *address, uint16_t port, unsigned int scope);

struct inbox {
    uint8_t *data;
    size_t size, used;
};

/*
 * Takes what has arrived and hands each whole message of inbox->size bytes to `take`. 0, or an errno;
 * ECONNABORTED at the end of the connection.
 */
int inbox_drain(struct connection *connection, struct inbox *inbox,
                int (*take)(struct connection *connection, uint8_t *message));
/* Keeps one message in the stream's records. */
void message_record(struct stream *stream, const uint8_t *message, size_t size, const struct probe *probe);

#endif
