/* Faults in file operations below one folder: a library for LD_PRELOAD, which the harness compiles.

   SSA_FAULT_FOLDER: the folder.  SSA_FAULT_STATE: a file of zeros, the counters that all processes share; what a fault
   hit is written to the same name with ".hit".  SSA_FAULT: what happens, counted over all processes,
     kill N SHARE         SIGKILL at operation N, after SHARE thousandths of the bytes of a write; other operations are
                          done from 500 on
     fail ERRNO N COUNT   COUNT operations from N on fail; the first write takes half of its bytes
     full ERRNO BYTES     writes have room for so many bytes, then these and new files fail
   Unset: operations are counted.  SSA_FAULT_CLOCK: seconds by which the clock of the day is ahead.  */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum kind { WRITE, CREATE, RENAME, SYNC, REMOVE };
struct verdict { int error, kill; size_t take; };

static struct { long operations, bytes; } *counters;
static char folder[PATH_MAX], hit[PATH_MAX];
static size_t folder_length;
static enum { COUNT, KILL, FAIL, FULL } fault;
static long first, second, third;

static int ready(void) {
    if (counters) return 1;
    const char *under = getenv("SSA_FAULT_FOLDER"), *state = getenv("SSA_FAULT_STATE"), *what = getenv("SSA_FAULT");
    if (!under || !state) return 0;
    int file = syscall(SYS_openat, AT_FDCWD, state, O_RDWR | O_CLOEXEC);
    if (file < 0) return 0;
    void *shared = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (shared == MAP_FAILED) return 0;
    folder_length = snprintf(folder, sizeof folder, "%s/", under);
    snprintf(hit, sizeof hit, "%s.hit", state);
    char name[8] = "";
    if (what && sscanf(what, "%7s %ld %ld %ld", name, &first, &second, &third) > 1)
        fault = !strcmp(name, "kill") ? KILL : !strcmp(name, "fail") ? FAIL : FULL;
    counters = shared;
    return 1;
}

static void report(const char *operation, const char *path, size_t taken, size_t size) {
    char line[PATH_MAX + 100];
    int length = snprintf(line, sizeof line, "%s %zu %zu %s\n", operation, taken, size, path + folder_length);
    int file = syscall(SYS_openat, AT_FDCWD, hit, O_WRONLY | O_CREAT | O_APPEND, 0644);
    syscall(SYS_write, file, line, length);
    syscall(SYS_close, file);
}

static struct verdict judge(enum kind kind, const char *operation, const char *path, size_t size) {
    struct verdict verdict = {0, 0, size};
    if (!ready() || strncmp(path, folder, folder_length)) return verdict;
    long number = __atomic_add_fetch(&counters->operations, 1, __ATOMIC_SEQ_CST);
    long before = __atomic_fetch_add(&counters->bytes, (long)size, __ATOMIC_SEQ_CST);
    if (fault == KILL && number == first) {
        verdict.kill = second < 500 ? -1 : 1;
        if (kind == WRITE) verdict.take = size * second / 1000, verdict.kill = 1;
        report(operation, path, kind == WRITE ? verdict.take : second >= 500, size);
    } else if (fault == FAIL && number >= second && number < second + third) {
        int space = first == ENOSPC || first == EDQUOT || first == EFBIG;
        if (space && (kind == REMOVE || kind == SYNC)) return verdict;
        if (kind == WRITE && number == second && size > 1) verdict.take = size / 2;
        else verdict.error = first;
        report(operation, path, kind == WRITE && !verdict.error ? verdict.take : 0, size);
    } else if (fault == FULL && (kind == WRITE || kind == CREATE) && before + (long)size > second) {
        if (kind == WRITE && before < second) verdict.take = second - before;
        else if (kind == WRITE || before > second) verdict.error = first;
        else return verdict;
        report(operation, path, verdict.error ? 0 : verdict.take, size);
    }
    return verdict;
}

static const char *path_of(int file, char *buffer) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

static const char *absolute(int directory, const char *path, char *buffer) {
    if (path[0] == '/') return path;
    if (directory == AT_FDCWD) { if (!getcwd(buffer, PATH_MAX)) buffer[0] = 0; }
    else path_of(directory, buffer);
    size_t length = strlen(buffer);
    snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    return buffer;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }

#define GUARDED(verdict, call)                                   \
    if ((verdict).error) { errno = (verdict).error; return -1; } \
    if ((verdict).kill < 0) die();                               \
    long result = (call);                                        \
    if ((verdict).kill > 0) die();                               \
    return result;

#define ON_PATH(kind, name, directory, path, call)                                        \
    char buffer[PATH_MAX];                                                                \
    struct verdict verdict = judge(kind, name, absolute(directory, path, buffer), 0);     \
    GUARDED(verdict, call)

#define ON_FILE(kind, name, file, size, call)                                             \
    char buffer[PATH_MAX];                                                                \
    struct verdict verdict = {0, 0, size};                                                \
    if (ready()) verdict = judge(kind, name, path_of(file, buffer), size);                \
    GUARDED(verdict, call)

static int opened(int directory, const char *path, int flags, mode_t mode) {
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) || !ready())
        return syscall(SYS_openat, directory, path, flags, mode);
    ON_PATH(CREATE, "open", directory, path, syscall(SYS_openat, directory, path, flags, mode))
}

#define MODE mode_t mode = 0; { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
EXPORT int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int at, const char *path, int flags, ...) { MODE return opened(at, path, flags, mode); }
EXPORT int openat64(int at, const char *path, int flags, ...) { MODE return opened(at, path, flags, mode); }

EXPORT ssize_t write(int file, const void *from, size_t size) {
    ON_FILE(WRITE, "write", file, size, syscall(SYS_write, file, from, verdict.take))
}
EXPORT ssize_t pwrite(int file, const void *from, size_t size, off_t at) {
    ON_FILE(WRITE, "pwrite", file, size, syscall(SYS_pwrite64, file, from, verdict.take, at))
}
EXPORT ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) { return pwrite(file, from, size, at); }
EXPORT ssize_t writev(int file, const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    ON_FILE(WRITE, "writev", file, size, verdict.take == size ? syscall(SYS_writev, file, parts, count)
            : syscall(SYS_write, file, parts[0].iov_base, verdict.take < parts[0].iov_len ? verdict.take : parts[0].iov_len))
}
EXPORT ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    ON_FILE(WRITE, "sendfile", to, size, syscall(SYS_sendfile, to, from, at, verdict.take))
}
EXPORT ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { return sendfile(to, from, at, size); }
EXPORT int fsync(int file) { ON_FILE(SYNC, "fsync", file, 0, syscall(SYS_fsync, file)) }
EXPORT int fdatasync(int file) { ON_FILE(SYNC, "fdatasync", file, 0, syscall(SYS_fdatasync, file)) }
EXPORT int ftruncate(int file, off_t size) { ON_FILE(REMOVE, "truncate", file, 0, syscall(SYS_ftruncate, file, size)) }
EXPORT int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }
EXPORT int truncate(const char *path, off_t size) {
    ON_PATH(REMOVE, "truncate", AT_FDCWD, path, syscall(SYS_truncate, path, size))
}
EXPORT int truncate64(const char *path, off64_t size) { return truncate(path, size); }
EXPORT int renameat(int from_at, const char *from, int to_at, const char *to) {
    ON_PATH(RENAME, "rename", to_at, to, syscall(SYS_renameat2, from_at, from, to_at, to, 0))
}
EXPORT int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
EXPORT int unlinkat(int at, const char *path, int flags) {
    ON_PATH(REMOVE, "unlink", at, path, syscall(SYS_unlinkat, at, path, flags))
}
EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int mkdirat(int at, const char *path, mode_t mode) {
    ON_PATH(CREATE, "mkdir", at, path, syscall(SYS_mkdirat, at, path, mode))
}
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

EXPORT int clock_gettime(clockid_t clock, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, clock, now);
    const char *ahead = clock == CLOCK_REALTIME ? getenv("SSA_FAULT_CLOCK") : NULL;
    if (!result && ahead) now->tv_sec += atol(ahead);
    return result;
}
