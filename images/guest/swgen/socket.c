/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The socket of a stream. */
#include "stream.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <string.h>

enum { RECEIVE_BUFFER_BYTES = 64 << 20 };

static void set_int(const struct stream *stream, int level, int name, int value, const char *what)
{
    if (setsockopt(stream->fd, level, name, &value, sizeof(value)) < 0)
        system_error("stream %u: %s", stream->options.id, what);
}

static void enlarge_receive_buffer(struct stream *stream)
{
    int bytes = RECEIVE_BUFFER_BYTES;
    socklen_t length = sizeof(bytes);

    /* FORCE needs CAP_NET_ADMIN in the *initial* user namespace; else net.core.rmem_max is the limit. */
    if (setsockopt(stream->fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0)
        (void)setsockopt(stream->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    if (getsockopt(stream->fd, SOL_SOCKET, SO_RCVBUF, &bytes, &length) == 0)
        stream->receive_buffer_bytes = bytes;
}

static void join_group(const struct stream *stream, unsigned int ifindex)
{
    const struct address *group = &stream->options.destination;

    if (group->family == AF_INET) {
        struct ip_mreqn request = {.imr_multiaddr = group->in4.sin_addr, .imr_ifindex = (int)ifindex};

        if (setsockopt(stream->fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof(request)) < 0)
            system_error("stream %u: joining the group", stream->options.id);
    } else {
        struct ipv6_mreq request = {.ipv6mr_multiaddr = group->in6.sin6_addr, .ipv6mr_interface = ifindex};

        if (setsockopt(stream->fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &request, sizeof(request)) < 0)
            system_error("stream %u: joining the group", stream->options.id);
    }
}

static void set_multicast_interface(const struct stream *stream, unsigned int ifindex)
{
    if (stream->options.destination.family == AF_INET) {
        struct ip_mreqn request = {.imr_ifindex = (int)ifindex};

        if (setsockopt(stream->fd, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof(request)) < 0)
            system_error("stream %u: IP_MULTICAST_IF", stream->options.id);
    } else {
        set_int(stream, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)ifindex, "IPV6_MULTICAST_IF");
    }
}

static void set_ttl(const struct stream *stream, sa_family_t family)
{
    int ttl = stream->options.ttl;

    if (family == AF_INET) {
        set_int(stream, IPPROTO_IP, IP_TTL, ttl, "IP_TTL");
        set_int(stream, IPPROTO_IP, IP_MULTICAST_TTL, ttl, "IP_MULTICAST_TTL");
    } else {
        set_int(stream, IPPROTO_IPV6, IPV6_UNICAST_HOPS, ttl, "IPV6_UNICAST_HOPS");
        set_int(stream, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, ttl, "IPV6_MULTICAST_HOPS");
    }
}

void stream_open(struct stream *stream)
{
    struct stream_options *options = &stream->options;
    sa_family_t family = options->destination.length ? options->destination.family
                         : options->source.length    ? options->source.family
                                                     : AF_INET;
    struct address local = {.length = 0};
    unsigned int ifindex = 0;

    stream->fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (stream->fd < 0)
        system_error("stream %u: socket", options->id);
    /* Not a sender: the kernel could give it the port of another that may be used again, and its replies would go there. */
    if (options->role != ROLE_SEND)
        set_int(stream, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
    set_int(stream, SOL_SOCKET, SO_TIMESTAMPNS, 1, "SO_TIMESTAMPNS");
    enlarge_receive_buffer(stream);
    if (options->ifname[0]) {
        ifindex = if_nametoindex(options->ifname);
        if (!ifindex)
            system_error("stream %u: interface %s", options->id, options->ifname);
        if (setsockopt(stream->fd, SOL_SOCKET, SO_BINDTODEVICE, options->ifname,
                       (socklen_t)strlen(options->ifname) + 1) < 0)
            system_error("stream %u: binding to interface %s", options->id, options->ifname);
    }
    if (options->cast == CAST_BROADCAST)
        set_int(stream, SOL_SOCKET, SO_BROADCAST, 1, "SO_BROADCAST");
    if (options->ttl)
        set_ttl(stream, family);

    if (options->source.length)
        local = options->source;
    else
        local = (struct address){.family = family,
                                 .length = family == AF_INET ? sizeof(local.in4) : sizeof(local.in6)};
    if (options->role == ROLE_SEND) {
        if (family == AF_INET) {
            options->destination.in4.sin_port = htons(options->port);
        } else {
            options->destination.in6.sin6_port = htons(options->port);
            options->destination.in6.sin6_scope_id = ifindex; /* link-local addresses need it */
            local.in6.sin6_scope_id = ifindex;
        }
    } else if (family == AF_INET) {
        local.in4.sin_port = htons(options->port);
    } else {
        local.in6.sin6_port = htons(options->port);
        local.in6.sin6_scope_id = ifindex;
    }
    /* A sender binds too: its port must not change, and replies may come at once. */
    if (bind(stream->fd, &local.any, local.length) < 0)
        system_error("stream %u: bind to port %u", options->id, options->role == ROLE_SEND ? 0 : options->port);
    if (options->cast == CAST_MULTICAST) {
        if (options->role == ROLE_SEND)
            set_multicast_interface(stream, ifindex);
        else
            join_group(stream, ifindex);
    }
}

void stream_read_drops(struct stream *stream)
{
    uint32_t figures[SK_MEMINFO_VARS] = {0};
    socklen_t length = sizeof(figures);

    if (getsockopt(stream->fd, SOL_SOCKET, SO_MEMINFO, figures, &length) == 0)
        stream->socket_drops = figures[SK_MEMINFO_DROPS];
}
