/* Lets one file-system call below a folder fail: opening for writing, writing, syncing, renaming, creating, deleting.

   Loaded with LD_PRELOAD. The environment variable FAULTS_CONTROL names a file of the size of `struct control`, which
   all processes share, so that calls are counted over all of them. Nothing happens while it is not armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct control {
    long armed, at, error, count, used; /* error: an errno, or -1 for SIGKILL; at: 0 records the calls */
    char folder[1024];
    char log[1 << 20];
} *control;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("FAULTS_CONTROL");
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDWR) : -1;
    if (file < 0) return;
    void *place = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) control = place;
    syscall(SYS_close, file);
}

static void link_of(char *path, int file, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
}

/* Counts a call; returns the errno with which it fails, or 0. Of content that a killed process writes, half arrives. */
static int strike(const char *call, int folder, const char *name, int file, const void *content, size_t size) {
    char path[2 * PATH_MAX];
    if (!control || !control->armed) return 0;
    int before = errno;
    path[0] = 0;
    if (file >= 0) {
        link_of(path, file, PATH_MAX);
    } else if (name[0] != '/') {
        if (folder == AT_FDCWD) { if (!getcwd(path, PATH_MAX)) path[0] = 0; }
        else link_of(path, folder, PATH_MAX);
        strcat(path, "/");
        strncat(path, name, PATH_MAX - 1);
    } else {
        strncpy(path, name, PATH_MAX - 1);
        path[PATH_MAX - 1] = 0;
    }
    errno = before;
    if (strncmp(path, control->folder, strlen(control->folder))) return 0;
    long number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (!control->at) {
        long length = strlen(call) + strlen(path) + 2;
        long start = __atomic_fetch_add(&control->used, length, __ATOMIC_SEQ_CST);
        if (start + length < (long)sizeof control->log) snprintf(control->log + start, length + 1, "%s %s\n", call, path);
        return 0;
    }
    if (number != control->at) return 0;
    if (control->error > 0) return control->error;
    if (content) syscall(SYS_write, file, content, size / 2);
    kill(getpid(), SIGKILL);
    pause();
    return 0;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define FAIL(call, folder, path, file, content, size, result) \
    do { int error = strike(call, folder, path, file, content, size); if (error) { errno = error; return result; } } while (0)
#define FAIL_PATH(call, folder, path) FAIL(call, folder, path, -1, NULL, 0, -1)
#define FAIL_FILE(call, file) FAIL(call, 0, NULL, file, NULL, 0, -1)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        if (WRITES(flags)) FAIL_PATH("open", AT_FDCWD, path); \
        REAL(int, #name, const char *, int, ...); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        if (WRITES(flags)) FAIL_PATH("open", folder, path); \
        REAL(int, #name, int, const char *, int, ...); \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        if (strpbrk(mode, "wa+")) FAIL("open", AT_FDCWD, path, -1, NULL, 0, NULL); \
        REAL(FILE *, #name, const char *, const char *); \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *content, size_t size) {
    FAIL("write", 0, NULL, file, content, size, -1);
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(file, content, size);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    FAIL("write", 0, NULL, file, count ? parts->iov_base : NULL, count ? parts->iov_len : 0, -1);
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return real(file, parts, count);
}
#define PWRITE(name) \
    ssize_t name(int file, const void *content, size_t size, off_t place) { \
        FAIL_FILE("write", file); \
        REAL(ssize_t, #name, int, const void *, size_t, off_t); \
        return real(file, content, size, place); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
#define SENDFILE(name) \
    ssize_t name(int to, int from, off_t *place, size_t size) { \
        FAIL_FILE("write", to); \
        REAL(ssize_t, #name, int, int, off_t *, size_t); \
        return real(to, from, place, size); \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)
#define TRUNCATE(name) \
    int name(int file, off_t size) { \
        FAIL_FILE("write", file); \
        REAL(int, #name, int, off_t); \
        return real(file, size); \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)
#define SYNC(name) \
    int name(int file) { \
        FAIL_FILE("sync", file); \
        REAL(int, #name, int); \
        return real(file); \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    FAIL_PATH("rename", AT_FDCWD, from);
    REAL(int, "rename", const char *, const char *);
    return real(from, to);
}
int renameat(int folder, const char *from, int target, const char *to) {
    FAIL_PATH("rename", folder, from);
    REAL(int, "renameat", int, const char *, int, const char *);
    return real(folder, from, target, to);
}
int unlink(const char *path) {
    FAIL_PATH("delete", AT_FDCWD, path);
    REAL(int, "unlink", const char *);
    return real(path);
}
int unlinkat(int folder, const char *path, int flags) {
    FAIL_PATH("delete", folder, path);
    REAL(int, "unlinkat", int, const char *, int);
    return real(folder, path, flags);
}
int rmdir(const char *path) {
    FAIL_PATH("delete", AT_FDCWD, path);
    REAL(int, "rmdir", const char *);
    return real(path);
}
int mkdir(const char *path, mode_t mode) {
    FAIL_PATH("create", AT_FDCWD, path);
    REAL(int, "mkdir", const char *, mode_t);
    return real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
    FAIL_PATH("create", folder, path);
    REAL(int, "mkdirat", int, const char *, mode_t);
    return real(folder, path, mode);
}
