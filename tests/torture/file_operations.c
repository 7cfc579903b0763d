/* Preloaded into a process (LD_PRELOAD), it ends the process, fails, or waits at an operation on the files of one folder.

   Counted are, of the process that was armed alone: files opened for writing, writes, flushes, renames, links, deletions,
   new folders and truncations below the folder; TensorBoard's files are left out, which a thread writes when it likes.

   torture_arm(folder, nth, signal, error, delay_us, log): at the nth operation (from 1; 0: never) send `signal`, or, if
   `error` is set, fail with that errno, and so do all later ones that write. SIGKILL comes in the middle of a write. Each
   operation first waits delay_us; `log` (or NULL) gets a line for each: "s" if it is below checkpoints/, "-" if not.
   A program that is executed is armed by TORTURE_FOLDER, TORTURE_NTH, TORTURE_SIGNAL, TORTURE_ERROR, TORTURE_DELAY_US; with
   TORTURE_PARENT=1 the signal goes to its parent. With TORTURE_NEEDS=NAME only where that variable is set too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
#define OUTSIDE 0
#define INSIDE 1
#define SAVING 2

static char folder[4096];
static long nth, count, delay_us;
static int signal_number, error_number, to_parent, log_fd = -1;
static pid_t owner;
static unsigned char where_is[FDS];

static int where(int dir, const char *path) {
    if (!owner || !path) return OUTSIDE;
    if (path[0] != '/' && dir >= 0 && dir < FDS) return where_is[dir];
    if (strncmp(path, folder, strlen(folder)) || strstr(path, "/tensorboard")) return OUTSIDE;
    return strstr(path, "/checkpoints") ? SAVING : INSIDE;
}

static int of(int fd) { return owner && fd >= 0 && fd < FDS ? where_is[fd] : OUTSIDE; }

static void keep(int fd, int place) { if (fd >= 0 && fd < FDS) where_is[fd] = place; }

static void strike(void) {
    kill(to_parent ? getppid() : getpid(), signal_number);
    if (signal_number == SIGKILL && !to_parent) for (;;) pause();
}

/* 1: the operation is to fail; 2: it is the one in which to die. */
static int at(int place, int writes) {
    if (!place || getpid() != owner) return 0;
    int before = errno;
    if (delay_us) usleep(delay_us);
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (log_fd >= 0) syscall(SYS_write, log_fd, place == SAVING ? "s\n" : "-\n", 2);
    errno = before;
    if (!nth || now < nth) return 0;
    if (error_number) { if (writes || now == nth) { errno = error_number; return 1; } return 0; }
    return now == nth ? 2 : 0;
}

void torture_arm(const char *dir, long n, int sig, int error, long delay, const char *log) {
    snprintf(folder, sizeof folder, "%s", dir);
    memset(where_is, 0, sizeof where_is);
    nth = n; count = 0; signal_number = sig; error_number = error; delay_us = delay;
    log_fd = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    owner = getpid();
}

void torture_disarm(void) { owner = 0; }

__attribute__((constructor)) static void armed_by_environment(void) {
    const char *dir = getenv("TORTURE_FOLDER"), *needed = getenv("TORTURE_NEEDS");
    if (!dir || (needed && !getenv(needed))) return;
    const char *n = getenv("TORTURE_NTH"), *s = getenv("TORTURE_SIGNAL"), *e = getenv("TORTURE_ERROR"), *d = getenv("TORTURE_DELAY_US");
    to_parent = getenv("TORTURE_PARENT") != NULL;
    torture_arm(dir, n ? atol(n) : 0, s ? atoi(s) : 0, e ? atoi(e) : 0, d ? atol(d) : 0, NULL);
    unsetenv("TORTURE_FOLDER");
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define BEFORE(place, failed) switch (at(place, 1)) { case 1: return failed; case 2: strike(); }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    REAL(int, name, const char *, int, ...); int place = where(AT_FDCWD, path); \
    if (WRITES(flags)) BEFORE(place, -1) \
    int fd = real(path, flags, mode); keep(fd, place); return fd; }
OPEN(open) OPEN(open64)

#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    REAL(int, name, int, const char *, int, ...); int place = where(dir, path); \
    if (WRITES(flags)) BEFORE(place, -1) \
    int fd = real(dir, path, flags, mode); keep(fd, place); return fd; }
OPENAT(openat) OPENAT(openat64)

#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, name, const char *, const char *); int place = where(AT_FDCWD, path); \
    if (mode[0] != 'r' || strchr(mode, '+')) BEFORE(place, NULL) \
    FILE *file = real(path, mode); if (file) keep(fileno(file), place); return file; }
FOPEN(fopen) FOPEN(fopen64)

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    switch (at(of(fd), 1)) {
        case 1: return -1;
        case 2: if (signal_number == SIGKILL && !to_parent) real(fd, bytes, size / 2); strike();
    }
    return real(fd, bytes, size);
}

#define PWRITE(name) ssize_t name(int fd, const void *bytes, size_t size, off_t start) { \
    REAL(ssize_t, name, int, const void *, size_t, off_t); BEFORE(of(fd), -1) return real(fd, bytes, size, start); }
PWRITE(pwrite) PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(ssize_t, writev, int, const struct iovec *, int); BEFORE(of(fd), -1) return real(fd, parts, number);
}
int fsync(int fd) { REAL(int, fsync, int); BEFORE(of(fd), -1) return real(fd); }
int fdatasync(int fd) { REAL(int, fdatasync, int); BEFORE(of(fd), -1) return real(fd); }
int ftruncate(int fd, off_t size) { REAL(int, ftruncate, int, off_t); BEFORE(of(fd), -1) return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(int, ftruncate64, int, off64_t); BEFORE(of(fd), -1) return real(fd, size); }
int close(int fd) { REAL(int, close, int); keep(fd, OUTSIDE); return real(fd); }

/* Deleting needs no room: on a full disk it goes on. */
#define AWAY(place, failed) switch (at(place, 0)) { case 1: return failed; case 2: strike(); }

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *); BEFORE(where(AT_FDCWD, to), -1) return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *); BEFORE(where(b, to), -1) return real(a, from, b, to);
}
int symlink(const char *target, const char *path) {
    REAL(int, symlink, const char *, const char *); BEFORE(where(AT_FDCWD, path), -1) return real(target, path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t); BEFORE(where(AT_FDCWD, path), -1) return real(path, mode);
}
int unlink(const char *path) { REAL(int, unlink, const char *); AWAY(where(AT_FDCWD, path), -1) return real(path); }
int rmdir(const char *path) { REAL(int, rmdir, const char *); AWAY(where(AT_FDCWD, path), -1) return real(path); }
int unlinkat(int dir, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int); AWAY(where(dir, path), -1) return real(dir, path, flags);
}
