/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * swgen: the traffic generator of switchover, the same program in guests and on the host's side.
 *
 * Shared declarations.  All times are nanoseconds in int64_t; names end in the clock they belong to
 * (`_real_ns`, `_mono_ns`) wherever both occur.
 */
#ifndef SWGEN_H
#define SWGEN_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define NS_PER_S INT64_C(1000000000)

/* ---- util.c ---- */
int64_t clock_ns(clockid_t clock);
/* Prints "swgen: ..." and ends the process with status 2 (usage) or 1 (system, with strerror(errno)). */
void usage_error(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void system_error(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* Whole-string decimal numbers within [low, high]; anything else is a usage error that names `what`. */
uint64_t parse_u64(const char *what, const char *text, uint64_t low, uint64_t high);
double parse_number(const char *what, const char *text, double low, double high);
/* Sleeps until `due` on CLOCK_MONOTONIC, or until `stop` is set (seen within 20 ms).  False if stopped. */
bool sleep_until(int64_t due_mono_ns, const atomic_bool *stop);
/* Writes `length` bytes to `fd`, whatever partial writes happen.  0, or -1 with errno. */
int write_all(int fd, const void *data, size_t length);

/* ---- status.c: what the caller learns while the program runs ---- */
/* From here on each status line goes to standard output and is appended to DIR/status. */
void status_open(const char *directory);
void status_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Goes into the background: the parent ends with status 0 as soon as the first status line was written. */
void status_daemonise(const char *directory);

/* ---- control.c: orders to the running program ---- */
enum order { ORDER_NONE, ORDER_SEND, ORDER_STOP, ORDER_END };
/* Makes the FIFO DIR/control, and blocks the signals that are orders too. Before any thread is started. */
void control_open(const char *directory);
/* Waits for the next order. */
enum order control_next(void);

/* ---- queue.c ---- */
/* Packets that the interface's transmit queue has dropped so far, -1 if that cannot be told. */
int64_t queue_drops(const char *ifname);

/* ---- record.c: the record files ---- */
enum record_kind { RECORD_SENT = 1, RECORD_RECEIVED = 2, RECORD_REPLIES = 3, RECORD_TCP = 4 };

/* Records are little endian on disk (the program refuses to build elsewhere). */
struct sent_record {
    uint64_t seq;
    int64_t due_real_ns;
    int64_t sent_real_ns;
    int32_t error; /* errno of the send, 0: sent */
    uint32_t reserved;
};

struct received_record {
    uint64_t seq;
    int64_t sent_real_ns; /* as the payload says: the sender's clock */
    int64_t received_real_ns;
    uint32_t udp_length;
    uint32_t flags; /* low half: the probe's flags; RECEIVED_* */
};

#define RECEIVED_CORRUPT UINT32_C(0x10000)     /* the pattern after the probe header is damaged */
#define RECEIVED_NO_KERNEL_TIME UINT32_C(0x20000) /* received_real_ns was read in user space */

enum tcp_event {
    TCP_SAMPLE = 0,   /* time passed */
    TCP_OPENED = 1,   /* the connection is there */
    TCP_RESUMED = 2,  /* bytes moved again after a pause of at least half a sampling interval */
    TCP_CLOSED = 3,   /* the last record of an orderly end */
    TCP_FAILED = 4,   /* the last record of a connection that broke */
};

/* What one end of a TCP connection looked like; the figures of TCP_INFO stand under its names. */
struct tcp_record {
    int64_t time_real_ns;
    int64_t progress_real_ns; /* when app_bytes last grew */
    uint64_t app_bytes;       /* handed to the kernel (clients) or taken from it (serve) by the program */
    uint64_t bytes_acked, bytes_received, bytes_sent, bytes_retrans;
    uint32_t segs_out, segs_in, total_retrans, dsack_dups, reord_seen, rcv_ooopack;
    uint32_t rto_us, rtt_us, rttvar_us, snd_cwnd, unacked, lost, notsent_bytes, snd_wnd;
    uint8_t event, state, ca_state, retransmits, backoff, probes;
    uint16_t reserved;
    uint32_t last_ack_recv_ms, delivered;
};

struct record_chunk;

struct record_log {
    enum record_kind kind;
    uint64_t count;
    uint64_t overflowed;
    struct record_chunk *first, *last;
};

/* What all logs of the process may hold together, in records of 32 bytes. */
void record_set_budget(uint64_t max_records);
/* Half of the available memory, in records, and never more than `limit`. */
uint64_t record_default_budget(uint64_t limit);
/* Appends one record of the log's kind; beyond the budget (or out of memory) the record is counted as overflowed instead. */
void record_append(struct record_log *log, const void *record);

const char *record_kind_name(enum record_kind kind);

struct record_origin {
    uint32_t stream, nonce;
    int64_t start_real_ns, start_mono_ns;
};
/* Writes DIR/<stream>.<kind>.rec under a temporary name, renames it, and frees the log. 0 or -1 with errno. */
int record_write(struct record_log *log, const char *directory, const struct record_origin *origin);

/* ---- probe.c: the payload ---- */
enum { PROBE_BYTES = 32, PROBE_MAX_PAYLOAD = 65507 };
enum probe_flags { PROBE_PLAIN = 0, PROBE_ECHO_REQUEST = 1, PROBE_ECHO_REPLY = 2 };

struct probe {
    uint16_t flags;
    uint32_t stream, nonce;
    uint64_t seq;
    int64_t sent_real_ns;
};

void probe_encode(uint8_t *payload, const struct probe *probe);
/* False if these bytes are no probe of ours (length, magic, version). */
bool probe_decode(const uint8_t *payload, size_t length, struct probe *probe);
void probe_fill(uint8_t *payload, size_t length, uint64_t seq);
bool probe_intact(const uint8_t *payload, size_t length, uint64_t seq);

/* ---- counters.c: the kernel's TCP counters of this network namespace ---- */
struct tcp_counters;
/* NULL if they cannot be read. */
struct tcp_counters *tcp_counters_read(void);
/* Writes {"name": increase, ...} of all that grew since `before`; {} if either is NULL. */
void tcp_counters_print(FILE *out, const struct tcp_counters *before, const struct tcp_counters *after);

/* ---- subcommands; each returns the exit status ---- */
int command_run(int argc, char **argv);
int command_reseed(int argc, char **argv);
int command_dirty(int argc, char **argv);

#endif
