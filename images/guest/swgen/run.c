/* SPDX-License-Identifier: GPL-2.0-or-later */
/* swgen run: any number of streams in one process, steered by signals. */
#include "stream.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#define DEFAULT_MAX_RECORDS UINT64_C(20000000)

static const char *const role_names[] = {"", "send", "receive", "echo", "tcp-serve", "tcp-bulk", "tcp-request", "tcp-idle"};

struct run {
    struct session session;
    struct stream *streams;
    size_t stream_count;
    const char *directory;
    const char *queue; /* the interface whose transmit queue is watched, NULL: none */
    int64_t queue_drops_before;
    bool sending, has_tcp;
    struct tcp_counters *counters_before, *counters_after;
};

/* What goes out on a schedule starts and stops by signals; all else runs from `ready` to the end. */
static bool is_sender(const struct stream *stream)
{
    return stream->options.role == ROLE_SEND || stream->options.role > ROLE_TCP_SERVE;
}

static void start_thread(pthread_t *thread, void *(*loop)(void *), struct stream *stream)
{
    errno = pthread_create(thread, NULL, loop, stream);
    if (errno)
        system_error("stream %u: thread", stream->options.id);
}

static void start_receiving(struct run *run)
{
    for (size_t i = 0; i < run->stream_count; i++) {
        struct stream *stream = &run->streams[i];

        if (is_sender(stream) && !stream->options.echo)
            continue;
        stream->has_receiver = true;
        start_thread(&stream->receive_thread, is_tcp(&stream->options) ? tcp_serve_loop : stream_receive_loop, stream);
    }
}

static void start_sending(struct run *run)
{
    if (run->sending || atomic_load(&run->session.stop_sending))
        return;
    run->sending = true;
    run->session.first_due_mono_ns = clock_ns(CLOCK_MONOTONIC);
    for (size_t i = 0; i < run->stream_count; i++) {
        struct stream *stream = &run->streams[i];

        if (!is_sender(stream))
            continue;
        stream->has_sender = true;
        start_thread(&stream->send_thread, is_tcp(&stream->options) ? tcp_client_loop : stream_send_loop, stream);
    }
}

static void stop_sending(struct run *run)
{
    atomic_store(&run->session.stop_sending, true);
    for (size_t i = 0; i < run->stream_count; i++)
        if (run->streams[i].has_sender) {
            pthread_join(run->streams[i].send_thread, NULL);
            run->streams[i].has_sender = false;
        }
}

static void stop_receiving(struct run *run)
{
    atomic_store(&run->session.stop_receiving, true);
    eventfd_write(run->session.wake_fd, 1);
    for (size_t i = 0; i < run->stream_count; i++)
        if (run->streams[i].has_receiver) {
            pthread_join(run->streams[i].receive_thread, NULL);
            run->streams[i].has_receiver = false;
        }
}

static void write_log(const struct run *run, struct stream *stream, struct record_log *log)
{
    const struct record_origin origin = {
        .stream = stream->options.id,
        .nonce = run->session.nonce,
        .start_real_ns = run->session.start_real_ns,
        .start_mono_ns = run->session.start_mono_ns,
    };

    if (record_write(log, run->directory, &origin) < 0)
        system_error("writing the records of stream %u", stream->options.id);
    stream->written |= 1U << log->kind;
}

static void write_records(struct run *run)
{
    for (size_t i = 0; i < run->stream_count; i++) {
        struct stream *stream = &run->streams[i];
        const struct stream_options *options = &stream->options;
        const bool requests = options->role == ROLE_TCP_REQUEST;

        if (options->role == ROLE_SEND || requests)
            write_log(run, stream, &stream->sent);
        if (options->role == ROLE_RECEIVE || options->role == ROLE_ECHO || options->echo || requests ||
            (options->role == ROLE_TCP_SERVE && stream->received.count))
            write_log(run, stream, &stream->received);
        if (is_tcp(options))
            write_log(run, stream, &stream->progress);
    }
}

static void print_files(FILE *out, const struct stream *stream)
{
    const char *separator = "";

    fputs(",\"records\":[", out);
    for (enum record_kind kind = RECORD_SENT; kind <= RECORD_TCP; kind++)
        if (stream->written & 1U << kind) {
            fprintf(out, "%s\"%u.%s.rec\"", separator, stream->options.id, record_kind_name(kind));
            separator = ",";
        }
    fputc(']', out);
}

static void print_tcp(FILE *out, const struct stream *stream)
{
    fprintf(out,
            ",\"tcp\":{\"connected\":%s,\"closed\":%s,\"error\":%d,\"error_text\":\"%s\",\"bytes\":%llu,"
            "\"confirmed_bytes\":%llu,\"round_trip_ns\":%lld}",
            stream->tcp.connected ? "true" : "false", stream->tcp.closed ? "true" : "false", stream->tcp.error,
            stream->tcp.error ? strerror(stream->tcp.error) : "", (unsigned long long)stream->tcp.bytes,
            (unsigned long long)stream->tcp.confirmed_bytes, (long long)stream->tcp.round_trip_ns);
}

static void print_summary(const struct run *run)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);

    if (!out)
        system_error("summary");
    fprintf(out, "{\"nonce\":%u,\"start_realtime_ns\":%lld,\"start_monotonic_ns\":%lld,\"streams\":[",
            run->session.nonce, (long long)run->session.start_real_ns, (long long)run->session.start_mono_ns);
    for (size_t i = 0; i < run->stream_count; i++) {
        const struct stream *stream = &run->streams[i];

        fprintf(out,
                "%s{\"id\":%u,\"role\":\"%s\",\"sent\":%llu,\"received\":%llu,\"late_max_ns\":%lld,"
                "\"send_errors\":%llu,\"reply_errors\":%llu,\"receive_errors\":%llu,\"foreign\":%llu,"
                "\"corrupt\":%llu,\"socket_drops\":%u,\"overflowed\":%llu,\"receive_buffer_bytes\":%d",
                i ? "," : "", stream->options.id, role_names[stream->options.role],
                (unsigned long long)stream->sent_count,
                (unsigned long long)(stream->received.count + stream->received.overflowed),
                (long long)stream->late_max_ns, (unsigned long long)stream->send_errors,
                (unsigned long long)stream->reply_errors, (unsigned long long)stream->receive_errors,
                (unsigned long long)stream->foreign, (unsigned long long)stream->corrupt, stream->socket_drops,
                (unsigned long long)(stream->sent.overflowed + stream->received.overflowed + stream->progress.overflowed),
                stream->receive_buffer_bytes);
        if (is_tcp(&stream->options))
            print_tcp(out, stream);
        print_files(out, stream);
        fputc('}', out);
    }
    fputc(']', out);
    if (run->queue)
        fprintf(out, ",\"queue_drops\":{\"before\":%lld,\"after\":%lld}", (long long)run->queue_drops_before,
                (long long)queue_drops(run->queue));
    if (run->has_tcp) {
        fputs(",\"tcp_counters\":", out);
        tcp_counters_print(out, run->counters_before, run->counters_after);
    }
    fputc('}', out);
    fclose(out);
    status_line("%s", text);
    free(text);
}

static void open_streams(struct run *run)
{
    for (size_t i = 0; i < run->stream_count; i++) {
        struct stream *stream = &run->streams[i];

        stream->session = &run->session;
        stream->sent.kind = RECORD_SENT;
        stream->received.kind = is_sender(stream) ? RECORD_REPLIES : RECORD_RECEIVED;
        stream->progress.kind = RECORD_TCP;
        run->has_tcp |= is_tcp(&stream->options);
        if (!is_tcp(&stream->options))
            stream_open(stream);
        else if (stream->options.role == ROLE_TCP_SERVE)
            tcp_listen(stream);
    }
}

static void add_stream(struct run *run, const char *text)
{
    struct stream *streams = realloc(run->streams, (run->stream_count + 1) * sizeof(*streams));

    if (!streams)
        system_error("--stream");
    run->streams = streams;
    streams[run->stream_count] = (struct stream){.fd = -1};
    stream_parse(&streams[run->stream_count].options, text);
    for (size_t i = 0; i < run->stream_count; i++)
        if (streams[i].options.id == streams[run->stream_count].options.id)
            usage_error("--stream: id %u is there twice", streams[i].options.id);
    run->stream_count++;
}

int command_run(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"out", required_argument, NULL, 'o'},   {"stream", required_argument, NULL, 's'},
        {"nonce", required_argument, NULL, 'n'}, {"max-records", required_argument, NULL, 'm'},
        {"wait", no_argument, NULL, 'w'},        {"daemon", no_argument, NULL, 'd'},
        {"queue", required_argument, NULL, 'q'},
        {NULL, 0, NULL, 0},
    };
    struct run run = {.directory = NULL};
    uint64_t max_records = record_default_budget(DEFAULT_MAX_RECORDS);
    bool wait = false, background = false;
    int option;

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == 'o')
            run.directory = optarg;
        else if (option == 's')
            add_stream(&run, optarg);
        else if (option == 'n')
            run.session.nonce = (uint32_t)parse_u64("--nonce", optarg, 0, UINT32_MAX);
        else if (option == 'm')
            max_records = parse_u64("--max-records", optarg, 1, UINT64_MAX);
        else if (option == 'w')
            wait = true;
        else if (option == 'd')
            background = true;
        else if (option == 'q')
            run.queue = optarg;
        else
            return 2;
    }
    if (optind != argc)
        usage_error("run: unexpected argument '%s'", argv[optind]);
    if (!run.directory || !run.stream_count)
        usage_error("run: --out and at least one --stream are needed");
    if (mkdir(run.directory, 0755) < 0 && errno != EEXIST)
        system_error("cannot make %s", run.directory);

    if (background)
        status_daemonise(run.directory);
    status_open(run.directory);
    control_open(run.directory);

    record_set_budget(max_records);
    run.session.start_real_ns = clock_ns(CLOCK_REALTIME);
    run.session.start_mono_ns = clock_ns(CLOCK_MONOTONIC);
    run.session.wake_fd = eventfd(0, EFD_CLOEXEC);
    if (run.session.wake_fd < 0)
        system_error("eventfd");
    open_streams(&run);
    if (run.has_tcp)
        run.counters_before = tcp_counters_read();
    if (run.queue && (run.queue_drops_before = queue_drops(run.queue)) < 0)
        usage_error("--queue: nothing is known of a transmit queue of '%s'", run.queue);
    start_receiving(&run);
    status_line("ready");
    if (!wait)
        start_sending(&run);

    for (enum order order; (order = control_next()) != ORDER_END;) {
        if (order == ORDER_SEND) {
            start_sending(&run);
            status_line("sending");
        } else {
            stop_sending(&run);
            status_line("stopped");
        }
    }
    stop_sending(&run);
    stop_receiving(&run);
    if (run.has_tcp)
        run.counters_after = tcp_counters_read();
    for (size_t i = 0; i < run.stream_count; i++)
        if (!is_tcp(&run.streams[i].options))
            stream_read_drops(&run.streams[i]);
    write_records(&run);
    print_summary(&run);
    return 0;
}
