/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --stream k=v,k=v,... */
#include "stream.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

enum { TCP_MAX_SIZE = 1 << 20, TCP_BULK_SIZE = 1 << 16 };

static struct address parse_address(const char *key, const char *text)
{
    struct address address = {.length = 0};

    if (inet_pton(AF_INET, text, &address.in4.sin_addr) == 1) {
        address.family = AF_INET;
        address.length = sizeof(address.in4);
    } else if (inet_pton(AF_INET6, text, &address.in6.sin6_addr) == 1) {
        address.family = AF_INET6;
        address.length = sizeof(address.in6);
    } else {
        usage_error("%s: '%s' is no IPv4 or IPv6 address", key, text);
    }
    return address;
}

static int parse_word(const char *key, const char *text, const char *const *words)
{
    for (int i = 0; words[i]; i++)
        if (strcmp(text, words[i]) == 0)
            return i;
    usage_error("%s: '%s' is not a known value", key, text);
}

static void copy_word(const char *key, const char *text, char *word, size_t size)
{
    if (strlen(text) >= size)
        usage_error("%s: '%s' is too long", key, text);
    strcpy(word, text);
}

static void set_option(struct stream_options *options, const char *key, const char *value)
{
    static const char *const roles[] = {"",          "send",     "receive",     "echo",
                                        "tcp-serve", "tcp-bulk", "tcp-request", "tcp-idle", NULL};
    static const char *const casts[] = {"unicast", "broadcast", "multicast", NULL};

    if (strcmp(key, "id") == 0)
        options->id = (uint32_t)parse_u64(key, value, 0, UINT32_MAX);
    else if (strcmp(key, "role") == 0)
        options->role = (enum role)parse_word(key, value, roles);
    else if (strcmp(key, "cast") == 0)
        options->cast = (enum cast)parse_word(key, value, casts);
    else if (strcmp(key, "dst") == 0)
        options->destination = parse_address(key, value);
    else if (strcmp(key, "src") == 0)
        options->source = parse_address(key, value);
    else if (strcmp(key, "port") == 0)
        options->port = (uint16_t)parse_u64(key, value, 1, UINT16_MAX);
    else if (strcmp(key, "size") == 0)
        options->size = (uint32_t)parse_u64(key, value, PROBE_BYTES, TCP_MAX_SIZE);
    else if (strcmp(key, "rate") == 0)
        options->rate_pps = parse_number(key, value, 1e-3, 1e7);
    else if (strcmp(key, "burst") == 0)
        options->burst = (uint32_t)parse_u64(key, value, 1, 1000000);
    else if (strcmp(key, "count") == 0)
        options->count = parse_u64(key, value, 1, UINT64_MAX);
    else if (strcmp(key, "echo") == 0)
        options->echo = parse_u64(key, value, 0, 1) == 1;
    else if (strcmp(key, "ttl") == 0)
        options->ttl = (int)parse_u64(key, value, 1, 255);
    else if (strcmp(key, "sample_ms") == 0)
        options->sample_ms = (uint32_t)parse_u64(key, value, 1, 60000);
    else if (strcmp(key, "congestion") == 0)
        copy_word(key, value, options->congestion, sizeof(options->congestion));
    else if (strcmp(key, "ifname") == 0)
        copy_word(key, value, options->ifname, sizeof(options->ifname));
    else
        usage_error("--stream: unknown key '%s'", key);
}

static void check(const struct stream_options *options)
{
    if (options->role == ROLE_UNSET)
        usage_error("--stream: role= is missing");
    if (!options->port)
        usage_error("--stream %u: port= is missing", options->id);
    if ((options->role == ROLE_SEND || options->role > ROLE_TCP_SERVE) && !options->destination.length)
        usage_error("--stream %u: a sender needs dst=", options->id);
    if ((options->role == ROLE_SEND || options->role == ROLE_TCP_REQUEST) && options->rate_pps == 0)
        usage_error("--stream %u: a sender needs rate=", options->id);
    if (!is_tcp(options) && options->size > PROBE_MAX_PAYLOAD)
        usage_error("--stream %u: size=%u is more than UDP carries (%d)", options->id, options->size,
                    PROBE_MAX_PAYLOAD);
    if (is_tcp(options) && (options->echo || options->cast != CAST_UNICAST))
        usage_error("--stream %u: echo= and cast= are for UDP", options->id);
    if (options->cast == CAST_MULTICAST && !options->destination.length)
        usage_error("--stream %u: cast=multicast needs the group in dst=", options->id);
    if (options->cast == CAST_BROADCAST && options->destination.length && options->destination.family != AF_INET)
        usage_error("--stream %u: cast=broadcast is IPv4 only", options->id);
    if (options->destination.length && options->source.length &&
        options->destination.family != options->source.family)
        usage_error("--stream %u: dst= and src= are of two families", options->id);
}

void stream_parse(struct stream_options *options, const char *text)
{
    char *copy = strdup(text), *rest = copy, *pair;
    bool has_id = false;

    if (!copy)
        system_error("--stream");
    *options = (struct stream_options){.burst = 1, .sample_ms = 10};
    while ((pair = strsep(&rest, ","))) {
        char *value = strchr(pair, '=');

        if (!value || value == pair || !value[1])
            usage_error("--stream: '%s' is not key=value", pair);
        *value++ = '\0';
        set_option(options, pair, value);
        has_id |= strcmp(pair, "id") == 0;
    }
    free(copy);
    if (!has_id)
        usage_error("--stream: id= is missing");
    if (!options->size)
        options->size = options->role == ROLE_TCP_BULK ? TCP_BULK_SIZE : PROBE_BYTES;
    check(options);
}
