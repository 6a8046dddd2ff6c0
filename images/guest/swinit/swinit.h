/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * swinit: the guest's first process, and (under the name "configure") what gives its network settings.
 *
 * A program and not a shell script: under TCG each process costs several milliseconds, and both boot
 * and the settings of a warm guest are in the way of every test.
 */
#ifndef SWINIT_H
#define SWINIT_H

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* ---- main.c ---- */
/* Prints "configure: ..." or "init: ..." on standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Reads a short file into `text`, without its line end. False if it cannot be read. */
bool read_line(const char *path, char *text, size_t size);
bool write_text(const char *path, const char *text);

/* ---- configure.c ---- */
/* Carries out settings ("key=value"); prints one line of JSON. The exit status: 0, or 1 after a complaint. */
int configure(int count, char **settings);

/* ---- services.c ---- */
/* Starts what the guest offers, says "switchover: ready", and looks after all processes for ever. */
void serve(bool has_management) __attribute__((noreturn));

/* ---- netlink.c: all return 0, or a negative errno ---- */
struct prefix {
    int family;
    union {
        struct in_addr in4;
        struct in6_addr in6;
    };
    unsigned char length;
    bool usable; /* of addresses that were read: not tentative, not failed */
};

struct neighbour {
    struct prefix address; /* length unused */
    unsigned char mac[6];
};

int link_rename(const char *name, const char *new_name);
/* mac and mtu are left alone if NULL and 0. */
int link_change(int ifindex, const unsigned char *mac, unsigned int mtu);
int link_set_up(int ifindex, bool up);
int address_add(int ifindex, const struct prefix *address);
/* Calls `each` for every address of the interface; stops at its first non-zero result and returns that. */
int address_each(int ifindex, int (*each)(int ifindex, const struct prefix *address, void *context), void *context);
int address_delete(int ifindex, const struct prefix *address);
int neighbour_add(int ifindex, const struct neighbour *neighbour);
int neighbour_flush(int ifindex);

#endif
