/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an interface's transmit queue (its qdisc) dropped: packets that were sent and never left. */
#include "swgen.h"

#include <linux/gen_stats.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct rtattr *find(const struct rtattr *attribute, int length, unsigned short type)
{
    for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length))
        if ((attribute->rta_type & NLA_TYPE_MASK) == type)
            return attribute;
    return NULL;
}

/* The root's figure is the sum of its queues. False if this answer is not about the root of `ifindex`. */
static bool read_drops(const struct nlmsghdr *answer, int ifindex, int64_t *drops)
{
    const struct tcmsg *qdisc = NLMSG_DATA(answer);
    const struct rtattr *statistics, *queue;
    struct gnet_stats_queue figures = {.drops = 0};
    size_t length;

    if (answer->nlmsg_type != RTM_NEWQDISC || qdisc->tcm_ifindex != ifindex || qdisc->tcm_parent != TC_H_ROOT)
        return false;
    statistics = find(TCA_RTA(qdisc), (int)TCA_PAYLOAD(answer), TCA_STATS2);
    queue = statistics ? find(RTA_DATA(statistics), (int)RTA_PAYLOAD(statistics), TCA_STATS_QUEUE) : NULL;
    if (!queue)
        return false;
    length = RTA_PAYLOAD(queue);
    memcpy(&figures, RTA_DATA(queue), length < sizeof(figures) ? length : sizeof(figures));
    *drops = figures.drops;
    return true;
}

int64_t queue_drops(const char *ifname)
{
    struct {
        struct nlmsghdr header;
        struct tcmsg qdisc;
    } request = {
        .header = {.nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETQDISC, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .qdisc = {.tcm_ifindex = (int)if_nametoindex(ifname)},
    };
    char buffer[32768] __attribute__((aligned(8)));
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int64_t drops = -1;
    bool done = fd < 0 || !request.qdisc.tcm_ifindex || send(fd, &request, sizeof(request), 0) < 0;

    while (!done) {
        ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
        int left = (int)got;

        if (got <= 0)
            break;
        for (struct nlmsghdr *answer = (struct nlmsghdr *)buffer; NLMSG_OK(answer, left);
             answer = NLMSG_NEXT(answer, left)) {
            done |= answer->nlmsg_type == NLMSG_DONE || answer->nlmsg_type == NLMSG_ERROR;
            if (!done)
                (void)read_drops(answer, request.qdisc.tcm_ifindex, &drops);
        }
    }
    if (fd >= 0)
        close(fd);
    return drops;
}
