/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel's TCP counters (/proc/net/netstat, /proc/net/snmp): what no socket tells, such as tail loss probes
 * and spurious timeouts. They are those of the network namespace, of all its connections together.
 */
#include "swgen.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_COUNTERS = 512, NAME_BYTES = 40 };

struct tcp_counters {
    size_t count;
    struct {
        char name[NAME_BYTES];
        long long value;
    } list[MAX_COUNTERS];
};

/* Both files have pairs of lines: "TcpExt: name name ..." and "TcpExt: value value ...". */
static bool read_pairs(const char *path, const char *prefix, struct tcp_counters *counters)
{
    FILE *file = fopen(path, "re");
    char *names = NULL, *values = NULL;
    size_t names_size = 0, values_size = 0;

    if (!file)
        return false;
    while (getline(&names, &names_size, file) > 0 && getline(&values, &values_size, file) > 0) {
        char *names_rest = names, *values_rest = values, *name, *value;

        if (strncmp(names, prefix, strlen(prefix)))
            continue;
        strsep(&names_rest, " ");
        strsep(&values_rest, " ");
        while ((name = strsep(&names_rest, " \n")) && (value = strsep(&values_rest, " \n"))) {
            if (!*name || counters->count == MAX_COUNTERS)
                continue;
            snprintf(counters->list[counters->count].name, NAME_BYTES, "%s", name);
            counters->list[counters->count++].value = atoll(value);
        }
    }
    free(names);
    free(values);
    fclose(file);
    return true;
}

struct tcp_counters *tcp_counters_read(void)
{
    struct tcp_counters *counters = calloc(1, sizeof(*counters));

    if (counters && read_pairs("/proc/net/netstat", "TcpExt:", counters) &&
        read_pairs("/proc/net/snmp", "Tcp:", counters))
        return counters;
    free(counters);
    return NULL;
}

void tcp_counters_print(FILE *out, const struct tcp_counters *before, const struct tcp_counters *after)
{
    const char *separator = "";

    fputc('{', out);
    /* The same kernel lists the same counters in the same order. */
    for (size_t i = 0; before && after && i < after->count && i < before->count; i++) {
        long long increase = after->list[i].value - before->list[i].value;

        if (increase <= 0 || strcmp(after->list[i].name, before->list[i].name))
            continue;
        fprintf(out, "%s\"%s\":%lld", separator, after->list[i].name, increase);
        separator = ",";
    }
    fputc('}', out);
}
