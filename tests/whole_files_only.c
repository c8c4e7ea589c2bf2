/* Preloaded around libc: below the directory $WHOLE_FILES_ONLY nothing can be renamed, linked, created exclusively
   or appended to, as on a mount of an object store. The JVM, pyarrow and Python all meet it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int is_below(int folder, const char *path) {
    const char *base = getenv("WHOLE_FILES_ONLY");
    char whole[PATH_MAX * 2], link[64];
    if (!base || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, whole, PATH_MAX);
        if (length < 0) return 0;
        whole[length] = 0;
    }
    size_t length = strlen(base);
    return !strncmp(whole, base, length) && (!whole[length] || whole[length] == '/');
}

static int refuse(void) { errno = EOPNOTSUPP; return -1; }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int rename(const char *from, const char *to) {
    return is_below(AT_FDCWD, from) || is_below(AT_FDCWD, to) ? refuse() : NEXT(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    return is_below(a, from) || is_below(b, to) ? refuse() : NEXT(renameat)(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return is_below(a, from) || is_below(b, to) ? refuse() : NEXT(renameat2)(a, from, b, to, flags);
}
int link(const char *from, const char *to) {
    return is_below(AT_FDCWD, from) || is_below(AT_FDCWD, to) ? refuse() : NEXT(link)(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    return is_below(a, from) || is_below(b, to) ? refuse() : NEXT(linkat)(a, from, b, to, flags);
}

static int is_refused(int folder, const char *path, int flags) {
    return (flags & (O_EXCL | O_APPEND)) && is_below(folder, path);
}

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = va_arg(more, mode_t);                         \
        va_end(more);                                               \
        if (is_refused(AT_FDCWD, path, flags)) return refuse();     \
        return NEXT(name)(path, flags, mode);                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                \
    int name(int folder, const char *path, int flags, ...) {        \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = va_arg(more, mode_t);                         \
        va_end(more);                                               \
        if (is_refused(folder, path, flags)) return refuse();       \
        return NEXT(name)(folder, path, flags, mode);               \
    }
OPENAT(openat)
OPENAT(openat64)

static void *refuse_map(int file, int flags) {
    char link[64], path[PATH_MAX];
    if (flags & MAP_ANONYMOUS) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    if (!is_below(AT_FDCWD, path)) return NULL;
    errno = ENODEV;
    return MAP_FAILED;
}

void *mmap(void *at, size_t length, int protection, int flags, int file, off_t offset) {
    void *refused = refuse_map(file, flags);
    return refused ? refused : NEXT(mmap)(at, length, protection, flags, file, offset);
}
void *mmap64(void *at, size_t length, int protection, int flags, int file, off64_t offset) {
    void *refused = refuse_map(file, flags);
    return refused ? refused : NEXT(mmap64)(at, length, protection, flags, file, offset);
}
