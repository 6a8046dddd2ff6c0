/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The probe's payload: 32 bytes in network byte order, then a pattern derived from the sequence number. */
#include "swgen.h"

#include <endian.h>
#include <string.h>

#define PROBE_MAGIC UINT32_C(0x53574F56) /* "SWOV" */
#define PROBE_VERSION 1

struct probe_wire {
    uint32_t magic;
    uint16_t version, flags;
    uint32_t stream, nonce;
    uint64_t seq, sent_real_ns;
};
_Static_assert(sizeof(struct probe_wire) == PROBE_BYTES, "probe header");

void probe_encode(uint8_t *payload, const struct probe *probe)
{
    struct probe_wire wire = {
        .magic = htobe32(PROBE_MAGIC),
        .version = htobe16(PROBE_VERSION),
        .flags = htobe16(probe->flags),
        .stream = htobe32(probe->stream),
        .nonce = htobe32(probe->nonce),
        .seq = htobe64(probe->seq),
        .sent_real_ns = htobe64((uint64_t)probe->sent_real_ns),
    };

    memcpy(payload, &wire, sizeof(wire));
}

bool probe_decode(const uint8_t *payload, size_t length, struct probe *probe)
{
    struct probe_wire wire;

    if (length < sizeof(wire))
        return false;
    memcpy(&wire, payload, sizeof(wire));
    if (be32toh(wire.magic) != PROBE_MAGIC || be16toh(wire.version) != PROBE_VERSION)
        return false;
    probe->flags = be16toh(wire.flags);
    probe->stream = be32toh(wire.stream);
    probe->nonce = be32toh(wire.nonce);
    probe->seq = be64toh(wire.seq);
    probe->sent_real_ns = (int64_t)be64toh(wire.sent_real_ns);
    return true;
}

/* One 64-bit word, repeated: as fast as memset, and no two neighbouring packets share a byte pattern. */
static uint64_t pattern_word(uint64_t seq)
{
    return htobe64((seq + 1) * UINT64_C(0x9E3779B97F4A7C15));
}

void probe_fill(uint8_t *payload, size_t length, uint64_t seq)
{
    uint64_t word = pattern_word(seq);
    size_t at = PROBE_BYTES;

    for (; at + sizeof(word) <= length; at += sizeof(word))
        memcpy(payload + at, &word, sizeof(word));
    if (at < length)
        memcpy(payload + at, &word, length - at);
}

bool probe_intact(const uint8_t *payload, size_t length, uint64_t seq)
{
    uint64_t word = pattern_word(seq);
    size_t at = PROBE_BYTES;

    for (; at + sizeof(word) <= length; at += sizeof(word))
        if (memcmp(payload + at, &word, sizeof(word)))
            return false;
    return at >= length || memcmp(payload + at, &word, length - at) == 0;
}
