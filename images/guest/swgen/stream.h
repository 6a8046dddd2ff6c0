/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One stream as one process sees it: what was asked for, its socket, its threads' state, its figures. */
#ifndef SWGEN_STREAM_H
#define SWGEN_STREAM_H

#include "swgen.h"

#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

enum role {
    ROLE_UNSET,
    ROLE_SEND,
    ROLE_RECEIVE,
    ROLE_ECHO,
    ROLE_TCP_SERVE,
    ROLE_TCP_BULK,
    ROLE_TCP_REQUEST,
    ROLE_TCP_IDLE,
};
enum cast { CAST_UNICAST, CAST_BROADCAST, CAST_MULTICAST };

struct address {
    union {
        sa_family_t family;
        struct sockaddr any;
        struct sockaddr_in in4;
        struct sockaddr_in6 in6;
    };
    socklen_t length; /* 0: not given */
};

struct stream_options {
    uint32_t id;
    enum role role;
    enum cast cast;
    struct address destination, source;
    uint16_t port;
    uint32_t size;  /* bytes of a packet's payload, of a request, of one write */
    double rate_pps; /* 0: as fast as possible (bulk only) */
    uint32_t burst; /* packets sent back to back at each deadline */
    uint64_t count; /* packets after which sending ends by itself; 0: none */
    bool echo;      /* a sender that wants its packets back */
    int ttl;        /* 0: the system's */
    uint32_t sample_ms; /* TCP: time between two records */
    char congestion[16]; /* TCP: algorithm, empty: the system's */
    char ifname[IF_NAMESIZE];
};

static inline bool is_tcp(const struct stream_options *options)
{
    return options->role >= ROLE_TCP_SERVE;
}

/* Parses "k=v,k=v,..."; any mistake is a usage error that names the key. */
void stream_parse(struct stream_options *options, const char *text);

/* The process's own matters, seen by all threads. */
struct session {
    uint32_t nonce;
    int64_t start_real_ns, start_mono_ns;
    int64_t first_due_mono_ns; /* set before `sending` */
    atomic_bool stop_sending, stop_receiving;
    int wake_fd; /* an eventfd, readable once receiving ends */
};

struct stream {
    struct stream_options options;
    const struct session *session;
    int fd;
    pthread_t send_thread, receive_thread;
    bool has_sender, has_receiver;
    struct record_log sent, received; /* `received` holds the replies where the stream sends */
    struct record_log progress;       /* TCP */
    unsigned int written;             /* bit n: the records of kind n are in their file */
    /* Figures; each is written by one thread only and read after that thread has been joined. */
    uint64_t sent_count, send_errors, reply_errors, foreign, corrupt, receive_errors;
    int64_t late_max_ns;
    uint32_t socket_drops;
    int receive_buffer_bytes;
    struct {
        bool connected, closed; /* closed: in order, by both ends */
        int error;              /* errno that ended the connection, 0: none */
        uint64_t bytes;         /* sent by a client, received by a server */
        uint64_t confirmed_bytes; /* what the server said it got (bulk) */
        int64_t round_trip_ns;  /* of the idle connection's one exchange, 0: none */
    } tcp;
};

/* Opens and binds the socket as the options say; failure ends the process with the reason. */
void stream_open(struct stream *stream);
/* Asks the kernel how many datagrams this socket had no room for. */
void stream_read_drops(struct stream *stream);
void *stream_send_loop(void *stream);
void *stream_receive_loop(void *stream);
/* When packet `seq` of the schedule is due. */
int64_t stream_due_ns(const struct stream *stream, uint64_t seq);

/* TCP: a server listens from stream_open on; clients connect when they start. */
void tcp_listen(struct stream *stream);
void *tcp_serve_loop(void *stream);
void *tcp_client_loop(void *stream);

#endif
