/* Ends the process at a chosen point of a chosen write to the registry's database.

   Loaded with LD_PRELOAD. CRASH_CONTROL names a file of two 32-bit integers that is mapped, so
   that the test may set the trap while the process runs: the kind of point (see below), and how
   many such points are still to pass, 0 when no trap is set. The process ends by SIGKILL, as it
   would by `kill -9`: nothing of it runs afterwards. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum kind {
    BEFORE_WRITE = 1, /* before a page reaches the write-ahead log */
    TORN_WRITE = 2,   /* when half of what was to be written reached it */
    BEFORE_SYNC = 3,  /* when all is written and nothing is flushed */
    AFTER_SYNC = 4,   /* when all is kept and nobody has been told */
    CHECKPOINT = 5,   /* when half of a page was moved into the database */
};

struct control {
    volatile int32_t kind;
    volatile int32_t still_to_pass;
};

static struct control *control(void) {
    static struct control *mapped;
    if (mapped == NULL) {
        const char *path = getenv("CRASH_CONTROL");
        int file = path == NULL ? -1 : open(path, O_RDWR);
        static struct control none;
        void *memory = MAP_FAILED;
        if (file >= 0) {
            memory = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            close(file);
        }
        mapped = memory == MAP_FAILED ? &none : memory;
    }
    return mapped;
}

/* Says which file this is: 'w' for the write-ahead log, 'd' for the database, 0 for any other. */
static char which(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) {
        return 0;
    }
    path[length] = 0;
    if (length > 4 && strcmp(path + length - 4, "-wal") == 0) {
        return 'w';
    }
    return length > 3 && strcmp(path + length - 3, ".db") == 0 ? 'd' : 0;
}

static int is_due(enum kind kind) {
    struct control *set = control();
    if (set->kind != (int32_t)kind || set->still_to_pass <= 0) {
        return 0;
    }
    return --set->still_to_pass == 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

typedef ssize_t (*pwrite_function)(int, const void *, size_t, off_t);
typedef int (*sync_function)(int);

static ssize_t written(const char *name, int file, const void *bytes, size_t count, off_t offset) {
    pwrite_function real = (pwrite_function)dlsym(RTLD_NEXT, name);
    if (control()->still_to_pass > 0) {
        char where = which(file);
        if (where == 'w' && is_due(BEFORE_WRITE)) {
            die();
        }
        if ((where == 'w' && is_due(TORN_WRITE)) || (where == 'd' && is_due(CHECKPOINT))) {
            real(file, bytes, count / 2, offset);
            die();
        }
    }
    return real(file, bytes, count, offset);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    return written("pwrite", file, bytes, count, offset);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off_t offset) {
    return written("pwrite64", file, bytes, count, offset);
}

static int synced(const char *name, int file) {
    sync_function real = (sync_function)dlsym(RTLD_NEXT, name);
    if (control()->still_to_pass > 0 && which(file) == 'w') {
        if (is_due(BEFORE_SYNC)) {
            die();
        }
        if (is_due(AFTER_SYNC)) {
            real(file);
            die();
        }
    }
    return real(file);
}

int fsync(int file) {
    return synced("fsync", file);
}

int fdatasync(int file) {
    return synced("fdatasync", file);
}
