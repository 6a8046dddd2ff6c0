/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the threads of a UDP stream do. */
#include "stream.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

enum { BATCH = 16, BUFFER_BYTES = 65536 };

/* ---- sending ---- */

int64_t stream_due_ns(const struct stream *stream, uint64_t seq)
{
    const struct stream_options *options = &stream->options;
    uint64_t at = seq / options->burst * options->burst;

    /* From the start each time: no error adds up.  A double is exact to 1 ns for the first 100 days. */
    return stream->session->first_due_mono_ns + (int64_t)((double)at * (double)NS_PER_S / options->rate_pps);
}

void *stream_send_loop(void *argument)
{
    struct stream *stream = argument;
    const struct session *session = stream->session;
    const struct stream_options *options = &stream->options;
    const int64_t real_less_mono_ns = session->start_real_ns - session->start_mono_ns;
    uint8_t *payload = malloc(options->size);
    struct probe probe = {
        .flags = options->echo ? PROBE_ECHO_REQUEST : PROBE_PLAIN,
        .stream = options->id,
        .nonce = session->nonce,
    };

    if (!payload)
        system_error("stream %u", options->id);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* of this thread; the default lets each wake-up be 50 us late */
    for (uint64_t seq = 0; !options->count || seq < options->count; seq++) {
        int64_t due_mono_ns = stream_due_ns(stream, seq), late_ns;
        struct sent_record record = {.seq = seq, .due_real_ns = due_mono_ns + real_less_mono_ns};

        probe.seq = seq;
        probe_fill(payload, options->size, seq);
        if (!sleep_until(due_mono_ns, &session->stop_sending))
            break;
        late_ns = clock_ns(CLOCK_MONOTONIC) - due_mono_ns;
        if (late_ns > stream->late_max_ns)
            stream->late_max_ns = late_ns;
        record.sent_real_ns = probe.sent_real_ns = clock_ns(CLOCK_REALTIME);
        probe_encode(payload, &probe);
        if (sendto(stream->fd, payload, options->size, 0, &options->destination.any,
                   options->destination.length) < 0) {
            record.error = errno;
            stream->send_errors++;
        } else {
            stream->sent_count++;
        }
        record_append(&stream->sent, &record);
    }
    free(payload);
    return NULL;
}

/* ---- receiving and echoing ---- */

struct receive_batch {
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    struct address senders[BATCH];
    union {
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
        struct cmsghdr align;
    } controls[BATCH];
    uint8_t buffers[BATCH][BUFFER_BYTES];
};

static void prepare(struct receive_batch *batch, int count)
{
    for (int i = 0; i < count; i++) {
        batch->vectors[i] = (struct iovec){batch->buffers[i], BUFFER_BYTES};
        batch->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &batch->senders[i].any,
            .msg_namelen = sizeof(batch->senders[i].in6),
            .msg_iov = &batch->vectors[i],
            .msg_iovlen = 1,
            .msg_control = batch->controls[i].bytes,
            .msg_controllen = sizeof(batch->controls[i]),
        };
    }
}

static int64_t kernel_time_ns(struct msghdr *message)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;

            memcpy(&stamp, CMSG_DATA(control), sizeof(stamp));
            return stamp.tv_sec * NS_PER_S + stamp.tv_nsec;
        }
    }
    return 0;
}

static void reply(struct stream *stream, const struct msghdr *request, uint8_t *payload, size_t length,
                  struct probe *probe)
{
    probe->flags = PROBE_ECHO_REPLY; /* the send time stays the request's: the sender reads its round trip off it */
    probe_encode(payload, probe);
    if (sendto(stream->fd, payload, length, 0, request->msg_name, request->msg_namelen) < 0)
        stream->reply_errors++;
    else
        stream->sent_count++;
}

static void take(struct stream *stream, struct mmsghdr *message)
{
    struct msghdr *header = &message->msg_hdr;
    uint8_t *payload = header->msg_iov->iov_base;
    size_t length = message->msg_len;
    const bool sender = stream->options.role == ROLE_SEND;
    struct probe probe;
    struct received_record record;

    if (!probe_decode(payload, length, &probe) || probe.nonce != stream->session->nonce ||
        probe.stream != stream->options.id || (probe.flags == PROBE_ECHO_REPLY) != sender) {
        stream->foreign++;
        return;
    }
    record = (struct received_record){
        .seq = probe.seq,
        .sent_real_ns = probe.sent_real_ns,
        .received_real_ns = kernel_time_ns(header),
        .udp_length = (uint32_t)length,
        .flags = probe.flags,
    };
    if (!record.received_real_ns) {
        record.received_real_ns = clock_ns(CLOCK_REALTIME);
        record.flags |= RECEIVED_NO_KERNEL_TIME;
    }
    if (!probe_intact(payload, length, probe.seq)) {
        record.flags |= RECEIVED_CORRUPT;
        stream->corrupt++;
    }
    if (stream->options.role == ROLE_ECHO && probe.flags == PROBE_ECHO_REQUEST)
        reply(stream, header, payload, length, &probe);
    record_append(&stream->received, &record);
}

void *stream_receive_loop(void *argument)
{
    struct stream *stream = argument;
    const struct session *session = stream->session;
    struct receive_batch *batch = calloc(1, sizeof(*batch)); /* pages are touched only as they are used */
    int dirty = BATCH;

    if (!batch)
        system_error("stream %u", stream->options.id);
    for (;;) {
        /* Looked at before the socket is emptied: what arrived before the end was asked for is still taken. */
        bool last = atomic_load(&session->stop_receiving);
        int count;

        prepare(batch, dirty);
        count = recvmmsg(stream->fd, batch->messages, BATCH, MSG_DONTWAIT, NULL);
        dirty = count > 0 ? count : 0;
        for (int i = 0; i < count; i++)
            take(stream, &batch->messages[i]);
        if (count == BATCH)
            continue;
        if (count < 0 && errno != EAGAIN && errno != EINTR)
            stream->receive_errors++;
        if (last)
            break;
        struct pollfd fds[] = {{.fd = stream->fd, .events = POLLIN}, {.fd = session->wake_fd, .events = POLLIN}};
        poll(fds, 2, -1);
    }
    free(batch);
    return NULL;
}
