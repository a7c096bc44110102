/* Count the system calls of a process that concern one folder, and let one of them go wrong.

   Loaded with LD_PRELOAD. arm(folder, calls, at, how, code) begins to count; the call number `at` (from 0) is killed,
   fails with errno `code`, does only a part, interrupts the process (or does so from then on at each), or stops it. `calls` names those that count, with
   spaces around each; " all " means all. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, FAIL, PART, INTERRUPT, STOP, INTERRUPT_EACH };

static char folder[PATH_MAX], wanted[1024], names[1 << 16];
static atomic_int armed, count, position;
static int at, how, code;

void arm(const char *where, const char *calls, int number, int manner, int error) {
    snprintf(folder, sizeof folder, "%s", where);
    snprintf(wanted, sizeof wanted, "%s", calls);
    at = number;
    how = manner;
    code = error;
    count = 0;
    position = 0;
    names[0] = 0;
    armed = 1;
}

int disarm(void) {
    armed = 0;
    return count;
}

const char *counted(void) { return names; }

static int is_within(const char *path) { return path && strncmp(path, folder, strlen(folder)) == 0; }

static int is_meant(int dir, const char *path, int fd) {
    char place[64], found[PATH_MAX];
    if (!armed) return 0;
    if (path && path[0] == '/') return is_within(path);
    snprintf(place, sizeof place, "/proc/self/fd/%d", path ? dir : fd);
    ssize_t size = readlink(place, found, sizeof found - 1);
    if (size < 0) return 0;
    found[size] = 0;
    return is_within(found);
}

/* Return what is to happen to this call. */
static int turn(const char *name, int dir, const char *path, int fd) {
    int saved = errno;
    char spaced[64];
    if (!is_meant(dir, path, fd)) { errno = saved; return NOTHING; }
    snprintf(spaced, sizeof spaced, " %s ", name);
    if (!strstr(wanted, " all ") && !strstr(wanted, spaced)) { errno = saved; return NOTHING; }
    int number = atomic_fetch_add(&count, 1);
    size_t length = strlen(name) + 1;
    int begin = atomic_fetch_add(&position, (int)length);
    if (begin + length < sizeof names) { memcpy(names + begin, name, length - 1); names[begin + length - 1] = ' '; }
    errno = saved;
    if (how == INTERRUPT_EACH && number > at) kill(getpid(), SIGINT);
    if (number != at) return NOTHING;
    if (how == KILL) { kill(getpid(), SIGKILL); for (;;) pause(); }
    if (how == STOP) { kill(getpid(), SIGSTOP); return NOTHING; }
    if (how == INTERRUPT || how == INTERRUPT_EACH) { kill(getpid(), SIGINT); return NOTHING; }
    return how;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define FAILS(name, dir, path, fd) \
    int what = turn(name, dir, path, fd); \
    if (what == FAIL) { errno = code; return -1; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        FAILS("open", AT_FDCWD, path, -1) \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        FAILS("open", dir, path, -1) \
        return real(dir, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define TRANSFER(name, shown, type) \
    ssize_t name(int fd, type data, size_t size, off64_t place) { \
        REAL(ssize_t, #name, int, type, size_t, off64_t); \
        FAILS(shown, 0, NULL, fd) \
        return real(fd, data, what == PART && size > 1 ? size / 2 : size, place); \
    }
TRANSFER(pread, "pread", void *)
TRANSFER(pread64, "pread", void *)
TRANSFER(pwrite, "pwrite", const void *)
TRANSFER(pwrite64, "pwrite", const void *)

#define VECTOR(name) \
    ssize_t name(int fd, const struct iovec *parts, int size, off64_t place) { \
        REAL(ssize_t, #name, int, const struct iovec *, int, off64_t); \
        FAILS("pread", 0, NULL, fd) \
        struct iovec half = parts[0]; \
        if (what == PART && half.iov_len > 1) { half.iov_len /= 2; return real(fd, &half, 1, place); } \
        return real(fd, parts, size, place); \
    }
VECTOR(preadv)
VECTOR(preadv64)

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    FAILS("read", 0, NULL, fd)
    return real(fd, data, what == PART && size > 1 ? size / 2 : size);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    FAILS("write", 0, NULL, fd)
    return real(fd, data, what == PART && size > 1 ? size / 2 : size);
}

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    FAILS("copy_file_range", 0, NULL, to)
    return real(from, start, to, place, what == PART && size > 1 ? size / 2 : size, flags);
}

#define SIMPLE(name, shown, parameters, types, arguments, dir, path, fd) \
    int name parameters { \
        REAL(int, #name, types); \
        FAILS(shown, dir, path, fd) \
        return real arguments; \
    }
#define TYPES(...) __VA_ARGS__
SIMPLE(fsync, "fsync", (int fd), TYPES(int), (fd), 0, NULL, fd)

int close(int fd) { /* a close that fails has closed the file all the same */
    REAL(int, "close", int);
    int what = turn("close", 0, NULL, fd), closed = real(fd);
    if (what != FAIL) return closed;
    errno = code;
    return -1;
}

SIMPLE(ftruncate, "ftruncate", (int fd, off_t size), TYPES(int, off_t), (fd, size), 0, NULL, fd)
SIMPLE(ftruncate64, "ftruncate", (int fd, off64_t size), TYPES(int, off64_t), (fd, size), 0, NULL, fd)
SIMPLE(fallocate, "fallocate", (int fd, int mode, off_t start, off_t size), TYPES(int, int, off_t, off_t),
       (fd, mode, start, size), 0, NULL, fd)
SIMPLE(rename, "rename", (const char *old, const char *new), TYPES(const char *, const char *), (old, new), AT_FDCWD,
       old, -1)
SIMPLE(renameat, "rename", (int from, const char *old, int to, const char *new),
       TYPES(int, const char *, int, const char *), (from, old, to, new), from, old, -1)
SIMPLE(renameat2, "rename", (int from, const char *old, int to, const char *new, unsigned flags),
       TYPES(int, const char *, int, const char *, unsigned), (from, old, to, new, flags), from, old, -1)
SIMPLE(link, "link", (const char *old, const char *new), TYPES(const char *, const char *), (old, new), AT_FDCWD, old, -1)
SIMPLE(linkat, "link", (int from, const char *old, int to, const char *new, int flags),
       TYPES(int, const char *, int, const char *, int), (from, old, to, new, flags), from, old, -1)
SIMPLE(unlink, "unlink", (const char *path), TYPES(const char *), (path), AT_FDCWD, path, -1)
SIMPLE(unlinkat, "unlink", (int dir, const char *path, int flags), TYPES(int, const char *, int), (dir, path, flags),
       dir, path, -1)
SIMPLE(rmdir, "rmdir", (const char *path), TYPES(const char *), (path), AT_FDCWD, path, -1)
SIMPLE(mkdir, "mkdir", (const char *path, mode_t mode), TYPES(const char *, mode_t), (path, mode), AT_FDCWD, path, -1)
