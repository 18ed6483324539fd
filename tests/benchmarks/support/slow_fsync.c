/* LD_PRELOAD: every fsync and fdatasync takes SLOW_FSYNC_US microseconds more (5000), as on a network volume. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void delay(void) {
    const char *wanted = getenv("SLOW_FSYNC_US");
    usleep(wanted ? (useconds_t)atoi(wanted) : 5000);
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    delay();
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    delay();
    return real(file);
}
