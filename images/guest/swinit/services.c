/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest offers once it is up: guest agent, SSH, a shell on the console. */
#include "swinit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AGENT_PORT "/dev/virtio-ports/org.qemu.guest_agent.0"

enum { PORT_TIMEOUT_MS = 2000 };

static pid_t start(char *const argv[], const char *log)
{
    pid_t child = fork();

    if (child == 0) {
        sigset_t none;

        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        if (!log) {
            int fd = open("/dev/ttyS0", O_RDWR);

            if (fd < 0)
                fd = open("/dev/console", O_RDWR);
            ioctl(fd, TIOCSCTTY, 0);
            dup2(fd, STDIN_FILENO);
            dup2(fd, STDOUT_FILENO);
            dup2(fd, STDERR_FILENO);
        } else {
            int null_fd = open("/dev/null", O_RDWR), log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);

            dup2(null_fd, STDIN_FILENO);
            dup2(log_fd, STDOUT_FILENO);
            dup2(log_fd, STDERR_FILENO);
        }
        for (int fd = STDERR_FILENO + 1; fd < 32; fd++)
            close(fd);
        execv(argv[0], argv);
        _exit(127);
    }
    if (child < 0)
        complain("cannot start %s: %s", argv[0], strerror(errno));
    return child;
}

/* ---- virtio-serial ports ---- */

static int open_uevents(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* True if one of the waiting events is about a port. A port's name comes later than the port. */
static bool ports_changed(int uevents)
{
    char event[4096];
    bool changed = false;
    ssize_t got;

    while ((got = recv(uevents, event, sizeof(event), 0)) > 0 || (got < 0 && errno == ENOBUFS))
        changed |= got < 0 || memmem(event, (size_t)got, "/virtio-ports/", 14);
    return changed;
}

static void link_ports(void)
{
    DIR *folder = opendir("/sys/class/virtio-ports");
    struct dirent *entry;

    while (folder && (entry = readdir(folder))) {
        char path[PATH_MAX], name[256], device[PATH_MAX];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
        if (!read_line(path, name, sizeof(name)) || !name[0] || strchr(name, '/'))
            continue;
        snprintf(device, sizeof(device), "/dev/%s", entry->d_name);
        snprintf(path, sizeof(path), "/dev/virtio-ports/%s", name);
        (void)!symlink(device, path);
    }
    if (folder)
        closedir(folder);
}

static bool has_console_device(void)
{
    DIR *folder = opendir("/sys/bus/virtio/drivers/virtio_console");
    struct dirent *entry;
    bool found = false;

    while (folder && !found && (entry = readdir(folder)))
        found = strncmp(entry->d_name, "virtio", 6) == 0;
    if (folder)
        closedir(folder);
    return found;
}

/* ---- processes ---- */

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* A program that is to run always, and is started again at most once a second. */
struct service {
    char *const *argv;
    const char *log; /* NULL: it has the console */
    pid_t pid;       /* 0: does not run */
    int64_t started_ms;
};

static void on_signals(int signals, struct service *services, size_t count)
{
    struct signalfd_siginfo signal_info;

    while (read(signals, &signal_info, sizeof(signal_info)) == sizeof(signal_info)) {
        pid_t child;

        /* What busybox's poweroff, halt and reboot send to the first process. */
        if (signal_info.ssi_signo == SIGUSR2 || signal_info.ssi_signo == SIGUSR1)
            reboot(RB_POWER_OFF);
        if (signal_info.ssi_signo == SIGTERM)
            reboot(RB_AUTOBOOT);
        while ((child = waitpid(-1, NULL, WNOHANG)) > 0)
            for (size_t i = 0; i < count; i++)
                if (services[i].pid == child)
                    services[i].pid = 0;
    }
}

static void keep_running(struct service *service)
{
    if (service->pid || (service->started_ms && now_ms() - service->started_ms < 1000))
        return;
    service->started_ms = now_ms();
    service->pid = start(service->argv, service->log);
}

void serve(bool has_management)
{
    static char *const agent[] = {"/usr/bin/qemu-ga", "-m", "virtio-serial", "-p", AGENT_PORT, "-t", "/run", NULL};
    static char *const ssh[] = {"/usr/bin/dropbear", "-F", "-E", "-s", "-r", "/etc/dropbear/host_key", NULL};
    static char *const shell[] = {"/usr/bin/sh", "-i", NULL};
    enum { AGENT, SHELL, SSH, SERVICES };
    struct service services[SERVICES] = {
        [AGENT] = {.argv = agent, .log = "/run/qemu-ga.log"},
        [SHELL] = {.argv = shell},
        [SSH] = {.argv = ssh, .log = "/run/dropbear.log"},
    };
    const bool wants_agent = has_console_device();
    const int64_t start_ms = now_ms();
    bool ready = false;
    sigset_t wanted;
    int signals, uevents;

    sigfillset(&wanted);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    uevents = open_uevents();
    link_ports();
    for (;;) {
        struct pollfd fds[] = {{.fd = signals, .events = POLLIN}, {.fd = uevents, .events = POLLIN}};
        const bool has_agent = access(AGENT_PORT, F_OK) == 0;
        bool all_run;

        if (has_agent)
            keep_running(&services[AGENT]);
        if (has_management)
            keep_running(&services[SSH]);
        if (!ready && (has_agent || !wants_agent || now_ms() - start_ms > PORT_TIMEOUT_MS)) {
            ready = true;
            printf("switchover: ready\n");
            fflush(stdout);
        }
        if (ready) /* nothing comes between this line and the prompt */
            keep_running(&services[SHELL]);
        all_run = ready && services[SHELL].pid && (services[AGENT].pid || !has_agent) &&
                  (services[SSH].pid || !has_management);
        poll(fds, 2, all_run ? -1 : 100);
        if (fds[0].revents)
            on_signals(signals, services, SERVICES);
        if (fds[1].revents && ports_changed(uevents))
            link_ports();
    }
}
