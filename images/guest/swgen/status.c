/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Status lines: on standard output, and in DIR/status for those who cannot read it while the program runs
 * (a guest agent hands over the output of a program only when it has ended).
 */
#include "swgen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int status_fd = -1;
static int parent_fd = -1; /* the waiting parent of a background process */

void status_open(const char *directory)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/status", directory);
    status_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (status_fd < 0)
        system_error("cannot write %s", path);
}

void status_line(const char *format, ...)
{
    /* The summary has one entry per stream: as long as it needs to be. */
    char *line = NULL;
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vasprintf(&line, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    line[length] = '\n'; /* over the NUL: write() knows the length */
    (void)!write(STDOUT_FILENO, line, (size_t)length + 1);
    if (status_fd >= 0)
        (void)!write(status_fd, line, (size_t)length + 1);
    free(line);
    if (parent_fd >= 0) {
        char go = 0;

        (void)!write(parent_fd, &go, 1);
        close(parent_fd);
        parent_fd = -1;
        /* Whoever reads our output to its end must not have to wait for the background process. */
        int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (null_fd >= 0) {
            dup2(null_fd, STDIN_FILENO);
            dup2(null_fd, STDOUT_FILENO);
            dup2(null_fd, STDERR_FILENO);
            close(null_fd);
        }
    }
}

void status_daemonise(const char *directory)
{
    int ends[2];
    pid_t child;
    char go;

    if (pipe2(ends, O_CLOEXEC) < 0)
        system_error("pipe");
    child = fork();
    if (child < 0)
        system_error("fork");
    if (child > 0) {
        int status = 0;

        close(ends[1]);
        if (read(ends[0], &go, 1) == 1)
            _exit(0);
        waitpid(child, &status, 0);
        _exit(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1);
    }
    close(ends[0]);
    setsid();
    parent_fd = ends[1];

    char path[4096], text[32];
    int fd, length;

    snprintf(path, sizeof(path), "%s/pid", directory);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    length = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (fd < 0 || write_all(fd, text, (size_t)length) < 0)
        system_error("cannot write %s", path);
    close(fd);
}
