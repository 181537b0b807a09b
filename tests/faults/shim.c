/* What goes wrong between a process and its system, at a chosen moment: preloaded into the processes that are tested.

   Every call that changes a file under one folder is counted. Before the one with the chosen number the process is
   killed, or from there on the disk is full, or every call, or the
   first ones, wait for a random while. The clock that tells the
   time of day can jump back and forth. Nothing happens until `faults_arm` or `faults_clock` is called in the process. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, KILL, FULL, DELAY };

static char place[PATH_MAX];
static size_t place_length;
static int action = NOTHING;
static long chosen, counted, longest_wait, farthest_jump;
static uint64_t drawn = 88172645463325252ULL;

/* xorshift: the same moments for the same seed */
static uint64_t draw(void) {
    drawn ^= drawn << 13;
    drawn ^= drawn >> 7;
    drawn ^= drawn << 17;
    return drawn;
}

void faults_arm(const char *folder, int what, long at, long microseconds, uint64_t seed) {
    snprintf(place, sizeof place, "%s", folder);
    place_length = strlen(place);
    chosen = at;
    longest_wait = microseconds;
    drawn = seed * 2654435761ULL + 88172645463325252ULL;
    __atomic_store_n(&counted, 0, __ATOMIC_SEQ_CST);
    action = what;
}

void faults_clock(long seconds, uint64_t seed) {
    drawn = seed * 2654435761ULL + 88172645463325252ULL;
    farthest_jump = seconds;
}

long faults_counted(void) { return __atomic_load_n(&counted, __ATOMIC_SEQ_CST); }

static int is_inside(const char *path) {
    return place_length && path && strncmp(path, place, place_length) == 0;
}

static int is_inside_folder(int folder, const char *path) {
    char link[64], found[PATH_MAX];
    if (path && path[0] == '/') return is_inside(path);
    if (!place_length) return 0;
    if (folder == AT_FDCWD) {
        if (!getcwd(found, sizeof found)) return 0;
        return is_inside(found);
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return is_inside(found);
}

/* Whether the call must fail because the disk is full; `takes_room` is whether it needs room at all. */
static int meets_fault(int takes_room) {
    if (action == NOTHING) return 0;
    long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    if (action == DELAY && longest_wait > 0 && (chosen == 0 || number <= chosen)) usleep(draw() % longest_wait);
    if (action == KILL && number == chosen) kill(getpid(), SIGKILL);
    if (action == FULL && number >= chosen && takes_room) {
        errno = ENOSPC;
        return 1;
    }
    return 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        REAL(name); \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && is_inside(path) && meets_fault(flags & O_CREAT)) return -1; \
        return real(path, flags, mode); \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        REAL(name); \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && is_inside_folder(folder, path) && meets_fault(flags & O_CREAT)) \
            return -1; \
        return real(folder, path, flags, mode); \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

#define ON_FILE(result, name, takes_room, parameters, arguments) \
    result name parameters { \
        REAL(name); \
        if (action != NOTHING && is_inside_folder(file, NULL) && meets_fault(takes_room)) return -1; \
        return real arguments; \
    }
ON_FILE(ssize_t, write, 1, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, writev, 1, (int file, const struct iovec *data, int count), (file, data, count))
ON_FILE(ssize_t, pwrite, 1, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, 1, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
ON_FILE(int, ftruncate, 1, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, 1, (int file, off64_t size), (file, size))
ON_FILE(int, fsync, 0, (int file), (file))
ON_FILE(int, fdatasync, 0, (int file), (file))

#define ON_PATH(name, takes_room, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        if (is_inside(path) && meets_fault(takes_room)) return -1; \
        return real arguments; \
    }
ON_PATH(mkdir, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, 0, (const char *path), (path))
ON_PATH(unlink, 0, (const char *path), (path))
ON_PATH(rename, 0, (const char *path, const char *other), (path, other))

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    if (is_inside_folder(folder, path) && meets_fault(0)) return -1;
    return real(folder, path, flags);
}

/* Where the time of day stands now: somewhere else every few calls. */
static long jumped(void) {
    static long offset;
    if (!farthest_jump) return 0;
    uint64_t number = draw();
    if (number % 4 == 0) offset = (long)((number >> 8) % (2 * (uint64_t)farthest_jump)) - farthest_jump;
    return offset;
}

int clock_gettime(clockid_t clock, struct timespec *told) {
    REAL(clock_gettime);
    int code = real(clock, told);
    if (code == 0 && clock == CLOCK_REALTIME) told->tv_sec += jumped();
    return code;
}

int gettimeofday(struct timeval *restrict told, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int code = real(told, zone);
    if (code == 0) told->tv_sec += jumped();
    return code;
}

time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}
