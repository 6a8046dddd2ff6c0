/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "swgen.h"

#include <string.h>

static const struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"run", "--out DIR --nonce N [--wait] [--daemon] [--max-records N] --stream k=v,... [--stream ...]", command_run},
    {"reseed", "< ENTROPY", command_reseed},
    {"dirty", "--rate-mib N --size-mib M", command_dirty},
};

int main(int argc, char **argv)
{
    const size_t count = sizeof(commands) / sizeof(commands[0]);

    if (argc > 1)
        for (size_t i = 0; i < count; i++)
            if (strcmp(argv[1], commands[i].name) == 0)
                return commands[i].run(argc - 1, argv + 1);
    fputs("usage:\n", stderr);
    for (size_t i = 0; i < count; i++)
        fprintf(stderr, "  swgen %s %s\n", commands[i].name, commands[i].help);
    return 2;
}
