// Loaded before the C library: lets the FAULT_AT-th call of FAULT_CALL fail for want of space or, with FAULT_KILL, end the
// process before it is carried out; with FAULT_FROM_THEN_ON, also every later one. With FAULT_RANK only the process of that rank
// has faults. With FAULT_COUNT names a file it counts the calls instead, and writes how many there were.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int calls;

static int is_of_rank(const char *wanted) {
    const char *own = getenv("PMI_RANK");
    if (!own) own = getenv("OMPI_COMM_WORLD_RANK");
    return !wanted || (own && strcmp(wanted, own) == 0);
}

static int fails(const char *call) {
    const char *wanted = getenv("FAULT_CALL"), *at = getenv("FAULT_AT");
    if (!wanted || strcmp(wanted, call) != 0 || !is_of_rank(getenv("FAULT_RANK"))) return 0;
    int number = atomic_fetch_add(&calls, 1) + 1;
    if (!at || number < atoi(at) || (number > atoi(at) && !getenv("FAULT_FROM_THEN_ON"))) return 0;
    if (getenv("FAULT_KILL")) raise(SIGKILL);
    errno = ENOSPC;
    return 1;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%d", atomic_load(&calls));
    fclose(file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int file) { return fails("fsync") ? -1 : REAL(fsync)(file); }

int fdatasync(int file) { return fails("fdatasync") ? -1 : REAL(fdatasync)(file); }

int rename(const char *from, const char *to) { return fails("rename") ? -1 : REAL(rename)(from, to); }

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return fails("renameat2") ? -1 : REAL(renameat2)(a, from, b, to, flags);
}

int mkdir(const char *path, mode_t mode) { return fails("mkdir") ? -1 : REAL(mkdir)(path, mode); }

int unlink(const char *path) { return fails("unlink") ? -1 : REAL(unlink)(path); }

int unlinkat(int folder, const char *path, int flags) {
    return fails("unlinkat") ? -1 : REAL(unlinkat)(folder, path, flags);
}

int rmdir(const char *path) { return fails("rmdir") ? -1 : REAL(rmdir)(path); }

int ftruncate64(int file, off64_t length) {
    return fails("ftruncate64") ? -1 : REAL(ftruncate64)(file, length);
}

ssize_t pwrite64(int file, const void *from, size_t length, off64_t at) {
    return fails("pwrite64") ? -1 : REAL(pwrite64)(file, from, length, at);
}

// Standard output and standard error are other tests' subject.
ssize_t write(int file, const void *from, size_t length) {
    return file > 2 && fails("write") ? -1 : REAL(write)(file, from, length);
}
