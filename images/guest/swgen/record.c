/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records in memory, in growing chunks, and the record files (layout: README.md). */
#include "swgen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "record files are written as they lie in memory: little endian only"
#endif

enum { CHUNK_BYTES = 1 << 18 };

_Static_assert(sizeof(struct sent_record) == 32, "sent record");
_Static_assert(sizeof(struct received_record) == 32, "received record");
_Static_assert(sizeof(struct tcp_record) == 128, "tcp record");

struct record_chunk {
    struct record_chunk *next;
    size_t used, room; /* bytes */
    uint8_t bytes[];
};

struct file_header {
    char magic[8];
    uint32_t kind, stream, record_bytes, nonce;
    uint64_t count, overflowed;
    int64_t start_real_ns, start_mono_ns;
    uint64_t reserved;
};
_Static_assert(sizeof(struct file_header) == 64, "file header");

/* In bytes; the smallest record is the unit in which people count. */
static atomic_uint_fast64_t budget;

void record_set_budget(uint64_t max_records)
{
    atomic_store(&budget, max_records * sizeof(struct sent_record));
}

static size_t record_bytes(enum record_kind kind)
{
    return kind == RECORD_TCP ? sizeof(struct tcp_record) : sizeof(struct sent_record);
}

uint64_t record_default_budget(uint64_t limit)
{
    FILE *meminfo = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long available_kib = 0;

    while (meminfo && fgets(line, sizeof(line), meminfo))
        if (sscanf(line, "MemAvailable: %llu", &available_kib) == 1)
            break;
    if (meminfo)
        fclose(meminfo);
    available_kib /= 2;
    if (available_kib && available_kib * 1024 / sizeof(struct sent_record) < limit)
        return available_kib * 1024 / sizeof(struct sent_record);
    return limit;
}

static struct record_chunk *new_chunk(size_t unit)
{
    uint64_t left = atomic_load(&budget), room;
    struct record_chunk *chunk;

    do {
        room = (left < CHUNK_BYTES ? left : CHUNK_BYTES) / unit * unit;
        if (!room)
            return NULL;
    } while (!atomic_compare_exchange_weak(&budget, &left, left - room));
    chunk = malloc(sizeof(*chunk) + room);
    if (!chunk)
        return NULL;
    *chunk = (struct record_chunk){.room = room};
    return chunk;
}

void record_append(struct record_log *log, const void *record)
{
    const size_t unit = record_bytes(log->kind);
    struct record_chunk *chunk = log->last;

    if (!chunk || chunk->used == chunk->room) {
        chunk = log->overflowed ? NULL : new_chunk(unit);
        if (!chunk) {
            log->overflowed++;
            return;
        }
        if (log->last)
            log->last->next = chunk;
        else
            log->first = chunk;
        log->last = chunk;
    }
    memcpy(chunk->bytes + chunk->used, record, unit);
    chunk->used += unit;
    log->count++;
}

const char *record_kind_name(enum record_kind kind)
{
    switch (kind) {
    case RECORD_SENT:
        return "sent";
    case RECORD_RECEIVED:
        return "received";
    case RECORD_REPLIES:
        return "replies";
    case RECORD_TCP:
        return "tcp";
    }
    abort();
}

int record_write(struct record_log *log, const char *directory, const struct record_origin *origin)
{
    char path[4096], partial[4096 + 8];
    struct file_header header = {
        .magic = {'S', 'W', 'R', 'E', 'C', 0, 0, 1},
        .kind = (uint32_t)log->kind,
        .stream = origin->stream,
        .record_bytes = (uint32_t)record_bytes(log->kind),
        .nonce = origin->nonce,
        .count = log->count,
        .overflowed = log->overflowed,
        .start_real_ns = origin->start_real_ns,
        .start_mono_ns = origin->start_mono_ns,
    };
    int fd, result;

    snprintf(path, sizeof(path), "%s/%u.%s.rec", directory, origin->stream, record_kind_name(log->kind));
    snprintf(partial, sizeof(partial), "%s.part", path);
    fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -1;
    result = write_all(fd, &header, sizeof(header));
    /* Each chunk is freed once written: where DIR lies in memory, records must not need it twice. */
    while (log->first) {
        struct record_chunk *chunk = log->first;

        if (result == 0)
            result = write_all(fd, chunk->bytes, chunk->used);
        log->first = chunk->next;
        free(chunk);
    }
    log->last = NULL;
    if (close(fd) < 0)
        result = -1;
    if (result == 0)
        result = rename(partial, path);
    return result;
}
