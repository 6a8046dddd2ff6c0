/* SPDX-License-Identifier: GPL-2.0-or-later */
/* /init: from the kernel's hands to "switchover: ready". */
#include "swinit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *program = "init";

void complain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fprintf(stderr, "%s: ", program);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

bool read_line(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

    if (fd >= 0)
        close(fd);
    if (got < 0)
        return false;
    text[got] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return true;
}

bool write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

    if (fd >= 0)
        close(fd);
    return written;
}

static void mount_all(void)
{
    static const struct {
        const char *type, *path, *options;
    } mounts[] = {
        {"proc", "/proc", NULL},         {"sysfs", "/sys", NULL},   {"devtmpfs", "/dev", NULL},
        {"devpts", "/dev/pts", NULL},    {"tmpfs", "/run", NULL},   {"tmpfs", "/tmp", "size=75%"},
        {"tmpfs", "/dev/shm", NULL},
    };

    for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
        mkdir(mounts[i].path, 0755);
        if (mount(mounts[i].type, mounts[i].path, mounts[i].type, MS_NOSUID, mounts[i].options) < 0)
            complain("cannot mount %s: %s", mounts[i].path, strerror(errno));
    }
    mkdir("/dev/virtio-ports", 0755);
}

static void use_console(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);

    if (fd < 0)
        return;
    dup2(fd, STDIN_FILENO);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

/* Calls `each` for every line of a file that is neither empty nor a comment. */
static void each_line(const char *path, void (*each)(char *line))
{
    FILE *file = fopen(path, "re");
    char line[512];

    while (file && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] && line[0] != '#')
            each(line);
    }
    if (file)
        fclose(file);
    else
        complain("cannot read %s: %s", path, strerror(errno));
}

/* "6.1.0-56-cloud-amd64/virtio.ko" */
static void load_module(char *name)
{
    char path[PATH_MAX];
    int fd;

    snprintf(path, sizeof(path), "/lib/modules/%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        complain("cannot load module %s: %s", name, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* "net/core/rmem_max 67108864" */
static void apply_setting(char *line)
{
    char path[PATH_MAX], *value = strchr(line, ' ');

    if (!value)
        return;
    *value++ = '\0';
    snprintf(path, sizeof(path), "/proc/sys/%s", line);
    if (!write_text(path, value) && errno != ENOENT) /* this kernel may lack it */
        complain("cannot set %s: %s", line, strerror(errno));
}

/* The virtio network devices in PCI order. Returns how many were found, at most `limit`. */
static int find_nics(char names[][IFNAMSIZ], int limit)
{
    struct dirent **devices;
    int device_count = scandir("/sys/bus/pci/devices", &devices, NULL, alphasort), found = 0;

    for (int i = 0; i < device_count; i++) {
        char path[PATH_MAX];
        struct dirent *entry;
        DIR *device;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", devices[i]->d_name);
        device = devices[i]->d_name[0] == '.' ? NULL : opendir(path);
        while (device && (entry = readdir(device))) {
            struct dirent *nic;
            DIR *nics;

            if (strncmp(entry->d_name, "virtio", 6))
                continue;
            snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s/net", devices[i]->d_name, entry->d_name);
            nics = opendir(path);
            while (nics && (nic = readdir(nics)))
                if (nic->d_name[0] != '.' && found < limit)
                    snprintf(names[found++], IFNAMSIZ, "%.15s", nic->d_name);
            if (nics)
                closedir(nics);
        }
        if (device)
            closedir(device);
        free(devices[i]);
    }
    if (device_count >= 0)
        free(devices);
    return found;
}

/* The first NIC becomes eth0, the one under test, the second mgmt0. */
static int name_nics(void)
{
    char names[2][IFNAMSIZ];
    int count = find_nics(names, 2), result = 0;

    if (count == 2 && strcmp(names[1], "mgmt0"))
        result = link_rename(names[1], "mgmt0");
    if (result == 0 && count && strcmp(names[0], "eth0"))
        result = link_rename(names[0], "eth0");
    if (result < 0)
        complain("cannot name the network interfaces: %s", strerror(-result));
    return count;
}

/* "switchover.ip4=..." on the kernel's command line is a setting. */
static void configure_from_command_line(void)
{
    static char command_line[4096];
    char *settings[32], *rest = command_line, *word;
    int count = 0;

    if (!read_line("/proc/cmdline", command_line, sizeof(command_line)))
        return;
    while ((word = strsep(&rest, " ")))
        if (strncmp(word, "switchover.", 11) == 0 && count < 32)
            settings[count++] = word + 11;
    if (count && configure(count, settings))
        complain("the settings on the kernel's command line were not carried out");
}

int main(int argc, char **argv)
{
    const char *name = strrchr(argv[0], '/');
    int nics;

    if (strcmp(name ? name + 1 : argv[0], "configure") == 0) {
        program = "configure";
        return configure(argc - 1, argv + 1);
    }
    if (getpid() != 1) {
        complain("this is for the first process of a guest");
        return 1;
    }
    mount_all();
    use_console();
    setenv("PATH", "/usr/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("TERM", "dumb", 1);
    setenv("PS1", "switchover# ", 1);
    (void)!chdir("/root");
    sethostname("switchover", 10);
    each_line("/etc/switchover/settings", apply_setting); /* before the NICs: they inherit "default" */
    each_line("/etc/switchover/modules", load_module);
    nics = name_nics();
    link_set_up((int)if_nametoindex("lo"), true);
    configure_from_command_line();
    serve(nics > 1);
}
