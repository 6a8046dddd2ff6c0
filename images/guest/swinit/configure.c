/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * configure [mac=M] [ip4=A/N] [ip6=A/N] [mtu=N] [queues=N] [mgmt=A/N] [hostname=H] [entropy=BASE64]
 *           [neigh=IP@MAC]...
 *
 * Gives the guest these settings, in place of what it had, and prints one line of JSON. Settings that are not
 * named stay as they are. Any setting of eth0 (all but mgmt, hostname and entropy) also brings it up, empties its
 * neighbour table, and is waited for: link and usable addresses.
 */
#include "swinit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/random.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_NEIGHBOURS = 64, MAX_ENTROPY_BYTES = 512, LINK_TIMEOUT_MS = 5000 };

struct settings {
    const char *hostname;
    bool touches_eth0;
    unsigned char mac[6];
    bool has_mac;
    struct prefix ip4, ip6, management; /* family 0: not given */
    unsigned int mtu, queues;           /* 0: not given */
    struct neighbour neighbours[MAX_NEIGHBOURS];
    size_t neighbour_count;
    struct {
        int entropy_bits, size;
        unsigned char bytes[MAX_ENTROPY_BYTES];
    } entropy;
};

/* ---- reading ---- */

static bool parse_address(const char *text, struct prefix *address)
{
    if (inet_pton(AF_INET, text, &address->in4) == 1)
        address->family = AF_INET;
    else if (inet_pton(AF_INET6, text, &address->in6) == 1)
        address->family = AF_INET6;
    else
        return false;
    return true;
}

static bool parse_number(const char *text, unsigned long low, unsigned long high, unsigned int *number)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || value < low || value > high)
        return false;
    *number = (unsigned int)value;
    return true;
}

/* "10.77.0.2/24"; `family` 0 takes either. */
static bool parse_prefix(const char *text, int family, struct prefix *prefix)
{
    char address[INET6_ADDRSTRLEN];
    const char *slash = strchr(text, '/');
    unsigned int length;

    if (!slash || (size_t)(slash - text) >= sizeof(address))
        return false;
    memcpy(address, text, (size_t)(slash - text));
    address[slash - text] = '\0';
    if (!parse_address(address, prefix) || (family && prefix->family != family) ||
        !parse_number(slash + 1, 1, prefix->family == AF_INET ? 32 : 128, &length))
        return false;
    prefix->length = (unsigned char)length;
    return true;
}

static bool parse_mac(const char *text, unsigned char mac[6])
{
    char rest;

    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4],
                  &mac[5], &rest) == 6;
}

static bool parse_neighbour(const char *text, struct settings *settings)
{
    struct neighbour *neighbour = &settings->neighbours[settings->neighbour_count];
    char address[INET6_ADDRSTRLEN];
    const char *at = strchr(text, '@');

    if (settings->neighbour_count == MAX_NEIGHBOURS || !at || (size_t)(at - text) >= sizeof(address))
        return false;
    memcpy(address, text, (size_t)(at - text));
    address[at - text] = '\0';
    settings->neighbour_count++;
    return parse_address(address, &neighbour->address) && parse_mac(at + 1, neighbour->mac);
}

static bool parse_base64(const char *text, struct settings *settings)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    int bit_count = 0;

    for (; *text && *text != '='; text++) {
        const char *digit = strchr(digits, *text);

        if (!digit || settings->entropy.size == MAX_ENTROPY_BYTES)
            return false;
        bits = bits << 6 | (uint32_t)(digit - digits);
        bit_count += 6;
        if (bit_count >= 8) {
            bit_count -= 8;
            settings->entropy.bytes[settings->entropy.size++] = (unsigned char)(bits >> bit_count);
        }
    }
    settings->entropy.entropy_bits = settings->entropy.size * 8;
    return settings->entropy.size >= 16 && strspn(text, "=") == strlen(text);
}

static bool parse_setting(const char *key, const char *value, struct settings *settings)
{
    if (strcmp(key, "mac") == 0)
        return settings->has_mac = parse_mac(value, settings->mac);
    if (strcmp(key, "ip4") == 0)
        return parse_prefix(value, AF_INET, &settings->ip4);
    if (strcmp(key, "ip6") == 0)
        return parse_prefix(value, AF_INET6, &settings->ip6);
    if (strcmp(key, "mgmt") == 0)
        return parse_prefix(value, 0, &settings->management);
    if (strcmp(key, "mtu") == 0)
        return parse_number(value, 68, 65535, &settings->mtu);
    if (strcmp(key, "queues") == 0)
        return parse_number(value, 1, 256, &settings->queues);
    if (strcmp(key, "neigh") == 0)
        return parse_neighbour(value, settings);
    if (strcmp(key, "entropy") == 0)
        return parse_base64(value, settings);
    if (strcmp(key, "hostname") == 0) {
        settings->hostname = value;
        return *value != '\0';
    }
    return false;
}

static bool parse_settings(int count, char **texts, struct settings *settings)
{
    static const char *const elsewhere[] = {"mgmt", "hostname", "entropy"};

    for (int i = 0; i < count; i++) {
        char key[16] = "";
        bool is_elsewhere = false;
        const char *value = strchr(texts[i], '=');

        if (value && (size_t)(value - texts[i]) < sizeof(key))
            memcpy(key, texts[i], (size_t)(value - texts[i]));
        if (!value || !parse_setting(key, value + 1, settings)) {
            complain("'%s' is no setting, or has an impossible value", texts[i]);
            return false;
        }
        for (size_t j = 0; j < sizeof(elsewhere) / sizeof(elsewhere[0]); j++)
            is_elsewhere |= strcmp(key, elsewhere[j]) == 0;
        settings->touches_eth0 |= !is_elsewhere;
    }
    return true;
}

/* ---- carrying out ---- */

static bool succeeded(int result, const char *what)
{
    if (result < 0)
        complain("%s: %s", what, strerror(-result));
    return result >= 0;
}

static bool add_entropy(const struct settings *settings)
{
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC), result = 0;

    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &settings->entropy) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        result = -errno;
    if (fd >= 0)
        close(fd);
    return succeeded(result, "fresh entropy");
}

/* An ioctl that takes an interface's name. */
static int interface_ioctl(unsigned long what, struct ifreq *request)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result;

    if (fd < 0)
        return -errno;
    result = ioctl(fd, what, request) < 0 ? -errno : 0;
    close(fd);
    return result;
}

static bool set_queues(unsigned int queues)
{
    struct ethtool_channels channels = {.cmd = ETHTOOL_SCHANNELS, .combined_count = queues};
    struct ifreq request = {.ifr_name = "eth0", .ifr_data = (char *)&channels};

    return succeeded(interface_ioctl(SIOCETHTOOL, &request), "queues");
}

static int delete_global(int ifindex, const struct prefix *address, void *context)
{
    const struct settings *settings = context;

    if (address->family == AF_INET ? settings->ip4.family == 0
                                   : settings->ip6.family == 0 || IN6_IS_ADDR_LINKLOCAL(&address->in6))
        return 0;
    return address_delete(ifindex, address);
}

static int delete_all(int ifindex, const struct prefix *address, void *context)
{
    (void)context;
    return address_delete(ifindex, address);
}

static bool set_up_eth0(int ifindex, const struct settings *settings)
{
    if (settings->queues && !set_queues(settings->queues))
        return false;
    if (!succeeded(address_each(ifindex, delete_global, (void *)settings), "removing old addresses"))
        return false;
    /* A new MAC needs a new link-local address too, which the kernel makes when the link goes up. */
    if (settings->has_mac && !succeeded(link_set_up(ifindex, false), "link down"))
        return false;
    if ((settings->has_mac || settings->mtu) &&
        !succeeded(link_change(ifindex, settings->has_mac ? settings->mac : NULL, settings->mtu), "mac or mtu"))
        return false;
    if (!succeeded(link_set_up(ifindex, true), "link up"))
        return false;
    if (settings->ip4.family && !succeeded(address_add(ifindex, &settings->ip4), "ip4"))
        return false;
    if (settings->ip6.family && !succeeded(address_add(ifindex, &settings->ip6), "ip6"))
        return false;
    if (!succeeded(neighbour_flush(ifindex), "emptying the neighbour table"))
        return false;
    for (size_t i = 0; i < settings->neighbour_count; i++)
        if (!succeeded(neighbour_add(ifindex, &settings->neighbours[i]), "neigh"))
            return false;
    return true;
}

static bool set_up_management(const struct prefix *address)
{
    int ifindex = (int)if_nametoindex("mgmt0");

    if (!ifindex) {
        complain("mgmt: this guest has no second virtio NIC");
        return false;
    }
    return succeeded(address_each(ifindex, delete_all, NULL), "mgmt: removing old addresses") &&
           succeeded(link_set_up(ifindex, true), "mgmt: link up") &&
           succeeded(address_add(ifindex, address), "mgmt: address");
}

/* ---- waiting and reporting ---- */

struct expectation {
    const struct settings *settings;
    bool ip4_there, ip6_there;
    char list[1024]; /* JSON */
};

static bool same(const struct prefix *wanted, const struct prefix *found)
{
    if (wanted->family != found->family || wanted->length != found->length || !found->usable)
        return false;
    return wanted->family == AF_INET ? wanted->in4.s_addr == found->in4.s_addr
                                     : IN6_ARE_ADDR_EQUAL(&wanted->in6, &found->in6);
}

static int look_at(int ifindex, const struct prefix *address, void *context)
{
    struct expectation *expectation = context;
    size_t used = strlen(expectation->list);
    char text[INET6_ADDRSTRLEN];

    (void)ifindex;
    inet_ntop(address->family, address->family == AF_INET ? (const void *)&address->in4 : &address->in6, text,
              sizeof(text));
    expectation->ip4_there |= same(&expectation->settings->ip4, address);
    expectation->ip6_there |= same(&expectation->settings->ip6, address);
    snprintf(expectation->list + used, sizeof(expectation->list) - used, "%s\"%s/%u\"", used ? "," : "", text,
             address->length);
    return 0;
}

/*
 * Up, and with carrier as the driver sees it: from then on frames go out and come in. IFF_RUNNING is not waited
 * for: it follows the kernel's link watch, which looks once a second only, and nothing here depends on it (only
 * IPv6 autoconfiguration does).
 */
static bool link_is_up(void)
{
    struct ethtool_value link = {.cmd = ETHTOOL_GLINK};
    struct ifreq ask_link = {.ifr_name = "eth0", .ifr_data = (char *)&link}, ask_flags = {.ifr_name = "eth0"};

    return interface_ioctl(SIOCETHTOOL, &ask_link) == 0 && link.data &&
           interface_ioctl(SIOCGIFFLAGS, &ask_flags) == 0 && ask_flags.ifr_flags & IFF_UP;
}

static bool read_addresses(int ifindex, struct expectation *seen)
{
    *seen = (struct expectation){.settings = seen->settings};
    return succeeded(address_each(ifindex, look_at, seen), "reading addresses");
}

static bool wait_for_eth0(int ifindex, const struct settings *settings, struct expectation *seen)
{
    const struct timespec pause = {.tv_nsec = 1000 * 1000};
    bool up = false;

    for (int waited_ms = 0; waited_ms < LINK_TIMEOUT_MS; waited_ms++) {
        up = link_is_up();
        if (up) {
            if (!read_addresses(ifindex, seen))
                return false;
            if ((seen->ip4_there || !settings->ip4.family) && (seen->ip6_there || !settings->ip6.family))
                return true;
        }
        nanosleep(&pause, NULL);
    }
    complain(up ? "eth0 has no usable address after %d ms" : "eth0 has no link after %d ms", LINK_TIMEOUT_MS);
    return false;
}

static int report(int ifindex, struct expectation *seen)
{
    const bool carrier = link_is_up();
    char mac[32] = "", mtu[16] = "0", boot_id[64] = "";
    struct timespec up;

    if (!read_addresses(ifindex, seen))
        return 1;
    read_line("/sys/class/net/eth0/address", mac, sizeof(mac));
    read_line("/sys/class/net/eth0/mtu", mtu, sizeof(mtu));
    read_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id));
    clock_gettime(CLOCK_BOOTTIME, &up);
    printf("{\"interface\":\"eth0\",\"mac\":\"%s\",\"mtu\":%s,\"carrier\":%s,\"addresses\":[%s],"
           "\"boot_id\":\"%s\",\"uptime_s\":%lld.%03ld}\n",
           mac, mtu, carrier ? "true" : "false", seen->list, boot_id, (long long)up.tv_sec, up.tv_nsec / 1000000);
    fflush(stdout);
    return 0;
}

int configure(int count, char **texts)
{
    struct settings settings = {.hostname = NULL};
    struct expectation seen = {.settings = &settings};
    int ifindex = (int)if_nametoindex("eth0");

    if (!parse_settings(count, texts, &settings))
        return 1;
    if (!ifindex) {
        complain("this guest has no virtio NIC");
        return 1;
    }
    if (settings.hostname && sethostname(settings.hostname, strlen(settings.hostname)) < 0) {
        complain("hostname: %s", strerror(errno));
        return 1;
    }
    if (settings.entropy.size && !add_entropy(&settings))
        return 1;
    if (settings.touches_eth0 && !set_up_eth0(ifindex, &settings))
        return 1;
    if (settings.management.family && !set_up_management(&settings.management))
        return 1;
    if (settings.touches_eth0 && !wait_for_eth0(ifindex, &settings, &seen))
        return 1;
    return report(ifindex, &seen);
    return 0;
}
