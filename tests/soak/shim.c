/* A disk that fails where it is told to, preloaded into a program under test.
 *
 * Calls that touch a file below SOAK_BELOW are counted: those of the kind SOAK_CALLS, or all of them. At the SOAK_NTH of
 * them comes what SOAK_ACT says:
 *
 *     error:N     the call fails with errno N, that one only
 *     broken:N    that call and all later ones fail with errno N
 *     part        from then on reads and writes move half of their bytes and are interrupted (EINTR), in turn
 *     signal:N    signal N is sent to the process before the call
 *
 * SOAK_ROOM=BYTES is a disk with so much room: writes beyond it fail with ENOSPC. A line is added to the file SOAK_REPORT for
 * what was done, for every flush ("synced INODE SIZE"), and at the program's end for the calls of each kind ("calls N KIND").
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *below, *chosen, *act;
static long nth, number;
static int report = -1;
static atomic_long calls, room = -1;

enum { OPEN, CREATE, READ, WRITE, FSYNC, RENAME, TRUNCATE, UNLINK, MKDIR, MMAP, KINDS };
static const char *const names[KINDS] = {"open",   "create",   "read",   "write", "fsync",
                                         "rename", "truncate", "unlink", "mkdir", "mmap"};
static atomic_long calls_of[KINDS];

/* The functions below replace those of the same name; these are the C library's. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *what, const char *path, long first, long second) {
    char line[600];
    int length = snprintf(line, sizeof line, "%s %ld %ld %s\n", what, first, second, path);
    if (report >= 0) syscall(SYS_write, report, line, length);
}

__attribute__((constructor)) static void begin(void) {
    below = getenv("SOAK_BELOW");
    chosen = getenv("SOAK_CALLS");
    act = getenv("SOAK_ACT");
    const char *text = getenv("SOAK_NTH");
    nth = text ? atol(text) : 0;
    const char *colon = act ? strchr(act, ':') : NULL;
    number = colon ? atol(colon + 1) : 0;
    if ((text = getenv("SOAK_ROOM"))) room = atol(text);
    if ((text = getenv("SOAK_REPORT"))) report = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

__attribute__((destructor)) static void end(void) {
    for (int kind = 0; kind < KINDS; kind++) note("calls", names[kind], calls_of[kind], 0);
}

static int is(const char *name) { return act && strncmp(act, name, strlen(name)) == 0; }

static int is_chosen(int kind) { return !chosen || strcmp(chosen, names[kind]) == 0; }

/* Whether a path is one of the tested program's files; it runs below SOAK_BELOW, so relative ones are. */
static int is_ours(const char *path) {
    return below && path && (path[0] != '/' || strncmp(path, below, strlen(below)) == 0);
}

static const char *path_of(int fd, char *path, size_t room_of_path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, room_of_path - 1);
    if (length <= 0 || path[0] != '/') return NULL;
    path[length] = 0;
    return path;
}

/* Counts a call; returns the errno that it has to fail with, 0 for none, -1 for a read or write to be cut short. */
static int turn(int kind, const char *path) {
    if (!is_ours(path)) return 0;
    calls_of[kind]++;
    if (!is_chosen(kind)) return 0;
    long call = ++calls;
    if (!nth || call < nth) return 0;
    if (is("part")) {
        if (call == nth) note("part", path, call, 0);
        return (call - nth) % 2 ? EINTR : -1;
    }
    if (call > nth && !is("broken")) return 0;
    if (call == nth) note(names[kind], path, call, number);
    if (is("signal")) {
        kill(getpid(), (int)number);
        return 0;
    }
    return (int)number;
}

static int turn_fd(int kind, int fd) {
    char path[500];
    return below ? turn(kind, path_of(fd, path, sizeof path)) : 0;
}

/* Takes room on the disk for a write; returns how many of its bytes have room. */
static size_t take_room(int fd, size_t bytes) {
    char path[500];
    if (room < 0 || !is_ours(path_of(fd, path, sizeof path))) return bytes;
    long left = atomic_fetch_sub(&room, (long)bytes);
    if (left >= (long)bytes) return bytes;
    note("full", path, left, (long)bytes);
    room = 0;
    return left > 0 ? (size_t)left : 0;
}

#define FAIL_IF(error, result)  \
    do {                        \
        int e = (error);        \
        if (e > 0) {            \
            errno = e;          \
            return (result);    \
        }                       \
    } while (0)

#define OPENING(name, params, path, ...)                              \
    int name params {                                                 \
        mode_t mode = 0;                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                          \
            va_list rest;                                             \
            va_start(rest, flags);                                    \
            mode = va_arg(rest, mode_t);                              \
            va_end(rest);                                             \
        }                                                             \
        FAIL_IF(turn(flags & O_CREAT ? CREATE : OPEN, path), -1);     \
        return REAL(name)(__VA_ARGS__, flags, mode);                  \
    }
OPENING(open, (const char *path, int flags, ...), path, path)
OPENING(open64, (const char *path, int flags, ...), path, path)
OPENING(openat, (int fd, const char *path, int flags, ...), path, fd, path)
OPENING(openat64, (int fd, const char *path, int flags, ...), path, fd, path)

#define READING(name, params, ...)                                 \
    ssize_t name params {                                       \
        int e = turn_fd(READ, fd);                            \
        FAIL_IF(e, -1);                                         \
        if (e < 0 && count > 1) count /= 2;                     \
        return REAL(name)(fd, bytes, count, ##__VA_ARGS__);     \
    }
READING(read, (int fd, void *bytes, size_t count))
READING(pread, (int fd, void *bytes, size_t count, off_t at), at)
READING(pread64, (int fd, void *bytes, size_t count, off64_t at), at)

#define WRITING(name, params, ...)                                \
    ssize_t name params {                                       \
        int e = turn_fd(WRITE, fd);                           \
        FAIL_IF(e, -1);                                         \
        if (e < 0 && count > 1) count /= 2;                     \
        size_t fits = take_room(fd, count);                     \
        FAIL_IF(fits == 0 && count > 0 ? ENOSPC : 0, -1);       \
        return REAL(name)(fd, bytes, fits, ##__VA_ARGS__);      \
    }
WRITING(write, (int fd, const void *bytes, size_t count))
WRITING(pwrite, (int fd, const void *bytes, size_t count, off_t at), at)
WRITING(pwrite64, (int fd, const void *bytes, size_t count, off64_t at), at)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    FAIL_IF(turn_fd(WRITE, fd), -1);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    FAIL_IF(take_room(fd, bytes) < bytes ? ENOSPC : 0, -1);
    return REAL(writev)(fd, parts, count);
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t count, unsigned flags) {
    FAIL_IF(turn_fd(WRITE, to), -1);
    FAIL_IF(take_room(to, count) < count ? ENOSPC : 0, -1);
    return REAL(copy_file_range)(from, at, to, to_at, count, flags);
}

#define FLUSHING(name)                                                                     \
    int name(int fd) {                                                                  \
        FAIL_IF(turn_fd(FSYNC, fd), -1);                                              \
        int result = REAL(name)(fd);                                                    \
        struct stat file;                                                               \
        char path[500];                                                                 \
        if (result == 0 && report >= 0 && is_ours(path_of(fd, path, sizeof path)) &&    \
            fstat(fd, &file) == 0 && S_ISREG(file.st_mode))                             \
            note("synced", "", (long)file.st_ino, (long)file.st_size);                  \
        return result;                                                                  \
    }
FLUSHING(fsync)
FLUSHING(fdatasync)

#define ON_FD(name, kind, params, ...)               \
    int name params {                                \
        FAIL_IF(turn_fd(kind, fd), -1);              \
        return REAL(name)(fd, __VA_ARGS__);          \
    }
ON_FD(ftruncate, TRUNCATE, (int fd, off_t length), length)
ON_FD(ftruncate64, TRUNCATE, (int fd, off64_t length), length)
ON_FD(fallocate, TRUNCATE, (int fd, int mode, off_t at, off_t length), mode, at, length)
ON_FD(fallocate64, TRUNCATE, (int fd, int mode, off64_t at, off64_t length), mode, at, length)

#define ON_PATH(name, kind, params, path, ...)       \
    int name params {                                \
        FAIL_IF(turn(kind, path), -1);               \
        return REAL(name)(__VA_ARGS__);              \
    }
ON_PATH(rename, RENAME, (const char *from, const char *to), to, from, to)
ON_PATH(renameat, RENAME, (int a, const char *from, int b, const char *to), to, a, from, b, to)
ON_PATH(renameat2, RENAME, (int a, const char *from, int b, const char *to, unsigned flags), to, a, from, b, to, flags)
ON_PATH(unlink, UNLINK, (const char *path), path, path)
ON_PATH(unlinkat, UNLINK, (int fd, const char *path, int flags), path, fd, path, flags)
ON_PATH(rmdir, UNLINK, (const char *path), path, path)
ON_PATH(mkdir, MKDIR, (const char *path, mode_t mode), path, path, mode)

#define MAPPING(name, offset_type)                                                                \
    void *name(void *at, size_t length, int protection, int flags, int fd, offset_type start) {  \
        if (fd >= 0) FAIL_IF(turn_fd(MMAP, fd), MAP_FAILED);                              \
        return REAL(name)(at, length, protection, flags, fd, start);                        \
    }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)
