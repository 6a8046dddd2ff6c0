/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The few rtnetlink requests that configuring two interfaces takes. */
#include "swinit.h"

#include <errno.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <unistd.h>

struct request {
    struct nlmsghdr header;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
        struct ndmsg neighbour;
    };
    char attributes[256];
};

static struct request make_request(uint16_t type, uint16_t flags, size_t body_bytes)
{
    struct request request;

    memset(&request, 0, sizeof(request));
    request.header.nlmsg_len = (uint32_t)NLMSG_LENGTH(body_bytes);
    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = NLM_F_REQUEST | flags;
    return request;
}

static void add_attribute(struct request *request, uint16_t type, const void *data, size_t bytes)
{
    struct rtattr *attribute = (struct rtattr *)((char *)request + NLMSG_ALIGN(request->header.nlmsg_len));

    attribute->rta_type = type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(bytes);
    memcpy(RTA_DATA(attribute), data, bytes);
    request->header.nlmsg_len = NLMSG_ALIGN(request->header.nlmsg_len) + (uint32_t)RTA_ALIGN(attribute->rta_len);
}

static int open_socket(void)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    return fd < 0 ? -errno : fd;
}

/*
 * Sends the request and hands each answer to `each` (may be NULL) until the acknowledgement or the end of the
 * dump. An error of `each` is kept while the rest of the dump is read.
 */
static int talk(struct request *request, int (*each)(const struct nlmsghdr *answer, void *context), void *context)
{
    char buffer[16384] __attribute__((aligned(8)));
    int fd = open_socket(), result = 0;

    if (fd < 0)
        return fd;
    /* Some of the bits mean something else in other requests: all of them, or it is no dump. */
    if ((request->header.nlmsg_flags & NLM_F_DUMP) != NLM_F_DUMP)
        request->header.nlmsg_flags |= NLM_F_ACK;
    if (send(fd, request, request->header.nlmsg_len, 0) < 0) {
        result = -errno;
        close(fd);
        return result;
    }
    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
        int left = (int)got;

        if (got < 0) {
            if (errno == EINTR)
                continue;
            result = -errno;
            break;
        }
        for (struct nlmsghdr *answer = (struct nlmsghdr *)buffer; NLMSG_OK(answer, left);
             answer = NLMSG_NEXT(answer, left)) {
            if (answer->nlmsg_type == NLMSG_ERROR) {
                result = ((struct nlmsgerr *)NLMSG_DATA(answer))->error;
                close(fd);
                return result;
            }
            if (answer->nlmsg_type == NLMSG_DONE) {
                close(fd);
                return result;
            }
            if (each && result == 0)
                result = each(answer, context);
        }
    }
    close(fd);
    return result;
}

static const void *address_bytes(const struct prefix *address)
{
    return address->family == AF_INET ? (const void *)&address->in4 : (const void *)&address->in6;
}

static size_t address_size(int family)
{
    return family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);
}

/* ---- links ---- */

static struct request link_request(int ifindex)
{
    struct request request = make_request(RTM_NEWLINK, 0, sizeof(struct ifinfomsg));

    request.link.ifi_index = ifindex;
    return request;
}

int link_rename(const char *name, const char *new_name)
{
    struct request request = link_request((int)if_nametoindex(name));

    if (!request.link.ifi_index)
        return -ENODEV;
    add_attribute(&request, IFLA_IFNAME, new_name, strlen(new_name) + 1);
    return talk(&request, NULL, NULL);
}

int link_change(int ifindex, const unsigned char *mac, unsigned int mtu)
{
    struct request request = link_request(ifindex);

    if (mac)
        add_attribute(&request, IFLA_ADDRESS, mac, 6);
    if (mtu)
        add_attribute(&request, IFLA_MTU, &mtu, sizeof(mtu));
    return talk(&request, NULL, NULL);
}

int link_set_up(int ifindex, bool up)
{
    struct request request = link_request(ifindex);

    request.link.ifi_change = IFF_UP;
    request.link.ifi_flags = up ? IFF_UP : 0;
    return talk(&request, NULL, NULL);
}

/* ---- addresses ---- */

static struct request address_request(uint16_t type, uint16_t flags, int ifindex, const struct prefix *address)
{
    struct request request = make_request(type, flags, sizeof(struct ifaddrmsg));
    size_t bytes = address_size(address->family);

    request.address.ifa_family = (unsigned char)address->family;
    request.address.ifa_prefixlen = address->length;
    request.address.ifa_index = (unsigned int)ifindex;
    add_attribute(&request, IFA_LOCAL, address_bytes(address), bytes);
    return request;
}

int address_add(int ifindex, const struct prefix *address)
{
    struct request request = address_request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, ifindex, address);

    if (address->family == AF_INET6) {
        request.address.ifa_flags = IFA_F_NODAD;
    } else if (address->length < 31) {
        struct in_addr broadcast = address->in4;

        broadcast.s_addr |= htonl(UINT32_MAX >> address->length);
        add_attribute(&request, IFA_BROADCAST, &broadcast, sizeof(broadcast));
    }
    return talk(&request, NULL, NULL);
}

int address_delete(int ifindex, const struct prefix *address)
{
    struct request request = address_request(RTM_DELADDR, 0, ifindex, address);

    return talk(&request, NULL, NULL);
}

struct address_visit {
    int ifindex;
    int (*each)(int ifindex, const struct prefix *address, void *context);
    void *context;
};

static int visit_address(const struct nlmsghdr *answer, void *context)
{
    const struct address_visit *visit = context;
    const struct ifaddrmsg *body = NLMSG_DATA(answer);
    struct prefix address = {.family = body->ifa_family, .length = body->ifa_prefixlen};
    uint32_t flags = body->ifa_flags;
    const void *bytes = NULL;
    int left = (int)IFA_PAYLOAD(answer);

    if (answer->nlmsg_type != RTM_NEWADDR || (int)body->ifa_index != visit->ifindex ||
        (body->ifa_family != AF_INET && body->ifa_family != AF_INET6))
        return 0;
    for (const struct rtattr *attribute = IFA_RTA(body); RTA_OK(attribute, left);
         attribute = RTA_NEXT(attribute, left)) {
        if (attribute->rta_type == IFA_LOCAL || (attribute->rta_type == IFA_ADDRESS && !bytes))
            bytes = RTA_DATA(attribute);
        else if (attribute->rta_type == IFA_FLAGS)
            memcpy(&flags, RTA_DATA(attribute), sizeof(flags));
    }
    if (!bytes)
        return 0;
    if (address.family == AF_INET)
        memcpy(&address.in4, bytes, sizeof(address.in4));
    else
        memcpy(&address.in6, bytes, sizeof(address.in6));
    address.usable = !(flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED));
    return visit->each(visit->ifindex, &address, visit->context);
}

int address_each(int ifindex, int (*each)(int, const struct prefix *, void *), void *context)
{
    struct request request = make_request(RTM_GETADDR, NLM_F_DUMP, sizeof(struct ifaddrmsg));
    struct address_visit visit = {.ifindex = ifindex, .each = each, .context = context};

    return talk(&request, visit_address, &visit);
}

/* ---- neighbours ---- */

int neighbour_add(int ifindex, const struct neighbour *neighbour)
{
    struct request request = make_request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof(struct ndmsg));

    request.neighbour.ndm_family = (unsigned char)neighbour->address.family;
    request.neighbour.ndm_ifindex = ifindex;
    request.neighbour.ndm_state = NUD_PERMANENT;
    add_attribute(&request, NDA_DST, address_bytes(&neighbour->address), address_size(neighbour->address.family));
    add_attribute(&request, NDA_LLADDR, neighbour->mac, sizeof(neighbour->mac));
    return talk(&request, NULL, NULL);
}

static int delete_neighbour(const struct nlmsghdr *answer, void *context)
{
    const int *ifindex = context;
    const struct ndmsg *body = NLMSG_DATA(answer);
    int left = (int)(answer->nlmsg_len - NLMSG_LENGTH(sizeof(*body)));
    const struct rtattr *attribute = (const struct rtattr *)((const char *)body + NLMSG_ALIGN(sizeof(*body)));
    struct request request = make_request(RTM_DELNEIGH, 0, sizeof(struct ndmsg));
    int result = 0;

    /* NOARP entries (multicast, loopback) are the kernel's own. */
    if (answer->nlmsg_type != RTM_NEWNEIGH || body->ndm_ifindex != *ifindex || body->ndm_state & NUD_NOARP)
        return 0;
    request.neighbour = *body;
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left))
        if (attribute->rta_type == NDA_DST) {
            add_attribute(&request, NDA_DST, RTA_DATA(attribute), RTA_PAYLOAD(attribute));
            result = talk(&request, NULL, NULL);
        }
    return result == -ENOENT ? 0 : result; /* it went by itself */
}

int neighbour_flush(int ifindex)
{
    struct request request = make_request(RTM_GETNEIGH, NLM_F_DUMP, sizeof(struct ndmsg));

    return talk(&request, delete_neighbour, &ifindex);
}
