/*
 * The fake's control file: what it states, and the faults that it lays on calls.
 *
 * The file named by NVML_FAKE_CONTROL is read again whenever it changed, before every call;
 * control.py explains its lines and writes it.
 */
#include "nvml_fake.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_LINES 2048
#define NAME_LENGTH 64
#define HELD "nvml-fake-held"

int initialised;

static struct line lines[MAX_LINES];
static int line_count;
static struct stat last_seen;
static struct nvmlDevice_st devices[MAX_DEVICES][1 + MAX_SLOTS];
static pid_t first_parent;

__attribute__((constructor)) static void loaded(void) { first_parent = getppid(); }

/* ---- the control file ------------------------------------------------------------------------------ */

static void split(struct line *line) {
    const char *rest = line->text;
    line->count = 0;
    while (line->count < MAX_WORDS) {
        rest += strspn(rest, " ");
        size_t length = strcspn(rest, " ");
        if (length == 0) {
            return;
        }
        snprintf(line->words[line->count++], WORD_LENGTH, "%.*s", (int)length, rest);
        rest += length;
    }
}

static void read_control(void) {
    const char *path = getenv("NVML_FAKE_CONTROL");
    struct stat now;
    if (path == NULL || stat(path, &now) != 0) {
        line_count = 0;
        memset(&last_seen, 0, sizeof last_seen);
        return;
    }
    if (now.st_ino == last_seen.st_ino && now.st_size == last_seen.st_size &&
        now.st_mtim.tv_sec == last_seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == last_seen.st_mtim.tv_nsec) {
        return;
    }
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return;
    }
    last_seen = now;
    line_count = 0;
    while (line_count < MAX_LINES && fgets(lines[line_count].text, sizeof lines[0].text, file) != NULL) {
        lines[line_count].text[strcspn(lines[line_count].text, "\n")] = '\0';
        split(&lines[line_count]);
        line_count += lines[line_count].count > 0;
    }
    fclose(file);
}

const struct line *line_at(int position) { return position < line_count ? &lines[position] : NULL; }

int means(const char *word, nvmlDevice_t device) {
    int index = 0, slot = WHOLE;
    if (strcmp(word, "*") == 0) {
        return 1;
    }
    return device != NULL && sscanf(word, "%d/%d", &index, &slot) >= 1 && index == device->index &&
           slot == device->slot;
}

const char *after(const struct line *line, int skipped) {
    const char *rest = line->text;
    for (int i = 0; i < skipped; i++) {
        rest += strspn(rest, " ");
        rest += strcspn(rest, " ");
    }
    return rest + strspn(rest, " ");
}

const char *machine_fact(const char *key) {
    for (int i = line_count - 1; i >= 0; i--) {
        if (lines[i].count >= 2 && strcmp(lines[i].words[0], key) == 0) {
            return after(&lines[i], 1);
        }
    }
    return NULL;
}

const char *device_fact(const char *key, nvmlDevice_t device) {
    const char *general = NULL;
    for (int i = line_count - 1; i >= 0; i--) {
        if (lines[i].count < 3 || strcmp(lines[i].words[0], key) != 0 || !means(lines[i].words[1], device)) {
            continue;
        }
        if (strcmp(lines[i].words[1], "*") != 0) {
            return after(&lines[i], 2);
        }
        general = general == NULL ? after(&lines[i], 2) : general;
    }
    return general;
}

/* `fault CALL device [value]`: a fault laid on a call, or NULL. */
static const struct line *fault(const char *kind, const char *call, nvmlDevice_t device) {
    for (int i = line_count - 1; i >= 0; i--) {
        if (lines[i].count >= 3 && strcmp(lines[i].words[0], kind) == 0 &&
            (strcmp(lines[i].words[1], call) == 0 || strcmp(lines[i].words[1], "*") == 0) &&
            means(lines[i].words[2], device)) {
            return &lines[i];
        }
    }
    return NULL;
}

nvmlDevice_t device_at(unsigned int index, int slot) {
    if (index >= MAX_DEVICES || slot < WHOLE || slot >= MAX_SLOTS) {
        return NULL;
    }
    devices[index][1 + slot].index = (int)index;
    devices[index][1 + slot].slot = slot;
    return &devices[index][1 + slot];
}

/* ---- faults ---------------------------------------------------------------------------------------- */

nvmlReturn_t code_named(const char *name) {
    static const struct {
        const char *name;
        nvmlReturn_t code;
    } codes[] = {
        {"UNINITIALIZED", NVML_ERROR_UNINITIALIZED},
        {"INVALID_ARGUMENT", NVML_ERROR_INVALID_ARGUMENT},
        {"NOT_SUPPORTED", NVML_ERROR_NOT_SUPPORTED},
        {"NO_PERMISSION", NVML_ERROR_NO_PERMISSION},
        {"NOT_FOUND", NVML_ERROR_NOT_FOUND},
        {"DRIVER_NOT_LOADED", NVML_ERROR_DRIVER_NOT_LOADED},
        {"TIMEOUT", NVML_ERROR_TIMEOUT},
        {"IRQ_ISSUE", NVML_ERROR_IRQ_ISSUE},
        {"LIBRARY_NOT_FOUND", NVML_ERROR_LIBRARY_NOT_FOUND},
        {"FUNCTION_NOT_FOUND", NVML_ERROR_FUNCTION_NOT_FOUND},
        {"GPU_IS_LOST", NVML_ERROR_GPU_IS_LOST},
        {"RESET_REQUIRED", NVML_ERROR_RESET_REQUIRED},
        {"OPERATING_SYSTEM", NVML_ERROR_OPERATING_SYSTEM},
        {"LIB_RM_VERSION_MISMATCH", NVML_ERROR_LIB_RM_VERSION_MISMATCH},
        {"ARGUMENT_VERSION_MISMATCH", NVML_ERROR_ARGUMENT_VERSION_MISMATCH},
        {"GPU_NOT_FOUND", NVML_ERROR_GPU_NOT_FOUND},
        {"UNKNOWN", NVML_ERROR_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (strcmp(codes[i].name, name) == 0) {
            return codes[i].code;
        }
    }
    return (nvmlReturn_t)atoi(name);
}

static void pause_ms(long ms) {
    struct timespec span = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&span, &span) != 0) {
    }
}

/* What this process goes by, whichever of its threads asks; as long as the kernel keeps a name. */
static void go_by(const char *name, char *before) {
    int fd = open("/proc/self/comm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    if (before != NULL) {
        ssize_t length = read(fd, before, NAME_LENGTH - 1);
        before[length > 0 ? length : 0] = '\0';
    }
    if (*name != '\0' && write(fd, name, strlen(name)) < 0) {
        perror("nvml_fake: name");
    }
    close(fd);
}

/*
 * A call stuck in the kernel: deaf to every signal but SIGKILL until its line is gone.
 *
 * Meanwhile the process goes by another name: a probe looks over the whole machine for a child that is
 * stuck, and the tests that run beside this one must not find what this one holds.
 */
static void hang(const char *call, nvmlDevice_t device) {
    sigset_t all, before;
    char name[NAME_LENGTH] = "";
    if (fault("hang", call, device) == NULL) {
        return;
    }
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    go_by(HELD, name); /* who sees this name may send signals */
    while (fault("hang", call, device) != NULL) {
        if (getppid() != first_parent) {
            _exit(1); /* the test is gone: leave nothing behind */
        }
        pause_ms(5);
        read_control();
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    go_by(name, NULL);
}

static void note(const char *call, nvmlDevice_t device) {
    const char *path = machine_fact("log");
    if (path == NULL) {
        return;
    }
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        if (device == NULL) {
            dprintf(fd, "%d %s\n", (int)getpid(), call);
        } else if (device->slot == WHOLE) {
            dprintf(fd, "%d %s %d\n", (int)getpid(), call, device->index);
        } else {
            dprintf(fd, "%d %s %d/%d\n", (int)getpid(), call, device->index, device->slot);
        }
        close(fd);
    }
}

nvmlReturn_t enter(const char *call, nvmlDevice_t device) {
    const struct line *found;
    read_control();
    note(call, device);
    if ((found = fault("print", call, device)) != NULL) {
        dprintf(STDOUT_FILENO, "%s\n", after(found, 3));
    }
    if ((found = fault("complain", call, device)) != NULL) {
        dprintf(STDERR_FILENO, "%s\n", after(found, 3));
    }
    if ((found = fault("delay", call, device)) != NULL) {
        pause_ms(atol(found->words[3]));
    }
    hang(call, device);
    if (fault("crash", call, device) != NULL) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
    }
    if ((found = fault("exit", call, device)) != NULL) {
        exit(atoi(found->words[3]));
    }
    found = fault("error", call, device);
    return found == NULL ? NVML_SUCCESS : code_named(found->words[3]);
}

nvmlReturn_t enter_machine(const char *call) {
    nvmlReturn_t code = enter(call, NULL);
    return code == NVML_SUCCESS && !initialised ? NVML_ERROR_UNINITIALIZED : code;
}

nvmlReturn_t enter_device(const char *call, nvmlDevice_t device) {
    if (device < &devices[0][0] || device >= &devices[0][0] + MAX_DEVICES * (1 + MAX_SLOTS)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    nvmlReturn_t code = enter(call, device);
    return code == NVML_SUCCESS && !initialised ? NVML_ERROR_UNINITIALIZED : code;
}
