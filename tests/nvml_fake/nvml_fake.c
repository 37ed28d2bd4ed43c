/*
 * An NVML of ours: the true ABI of NVIDIA's own nvml.h, driven by a plain-text file.
 *
 * Programs under test load it as libnvidia-ml.so.1 through LD_LIBRARY_PATH, so that the real binding runs
 * against real structs. The file named by NVML_FAKE_CONTROL is read again whenever it changed, before
 * every call; control.py explains its lines and writes it. What the file does not state is NOT_SUPPORTED.
 */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEVICES 64
#define MAX_LINES 2048
#define MAX_WORDS 6
#define EVERY (-1)
#define WORD_LENGTH 96

/* One line of the control file: its words (the last one takes the rest), and the line as written. */
struct line {
    char words[MAX_WORDS][WORD_LENGTH];
    int count;
    char text[512];
};

struct nvmlDevice_st {
    int index;
};

static struct line lines[MAX_LINES];
static int line_count;
static struct stat last_seen;
static struct nvmlDevice_st devices[MAX_DEVICES];
static int initialised;
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

/* Whether a device word (a number, or * for every device) means this device. */
static int means(const char *word, int device) {
    return strcmp(word, "*") == 0 || (device != EVERY && atoi(word) == device && word[0] != '*');
}

/* The text after the first `skipped` words of a line, spaces and all. */
static const char *after(const struct line *line, int skipped) {
    const char *rest = line->text;
    for (int i = 0; i < skipped; i++) {
        rest += strspn(rest, " ");
        rest += strcspn(rest, " ");
    }
    return rest + strspn(rest, " ");
}

/* `key value`: a fact about the machine. */
static const char *machine_fact(const char *key) {
    for (int i = line_count - 1; i >= 0; i--) {
        if (lines[i].count >= 2 && strcmp(lines[i].words[0], key) == 0) {
            return after(&lines[i], 1);
        }
    }
    return NULL;
}

/* `key device value`: a fact about one device; a line for this device wins over one for every device. */
static const char *device_fact(const char *key, nvmlDevice_t device) {
    const char *general = NULL;
    for (int i = line_count - 1; i >= 0; i--) {
        if (lines[i].count < 3 || strcmp(lines[i].words[0], key) != 0 || !means(lines[i].words[1], device->index)) {
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
static const struct line *fault(const char *kind, const char *call, int device) {
    for (int i = line_count - 1; i >= 0; i--) {
        if (lines[i].count >= 3 && strcmp(lines[i].words[0], kind) == 0 &&
            (strcmp(lines[i].words[1], call) == 0 || strcmp(lines[i].words[1], "*") == 0) &&
            means(lines[i].words[2], device)) {
            return &lines[i];
        }
    }
    return NULL;
}

/* ---- faults ---------------------------------------------------------------------------------------- */

static nvmlReturn_t code_named(const char *name) {
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

/* A call stuck in the kernel: deaf to every signal but SIGKILL until its line is gone. */
static void hang(const char *call, int device) {
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    while (fault("hang", call, device) != NULL) {
        if (getppid() != first_parent) {
            _exit(1); /* whoever runs the test is gone: leave nothing behind */
        }
        pause_ms(5);
        read_control();
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static void note(const char *call, int device) {
    const char *path = machine_fact("log");
    if (path == NULL) {
        return;
    }
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        if (device == EVERY) {
            dprintf(fd, "%d %s\n", (int)getpid(), call);
        } else {
            dprintf(fd, "%d %s %d\n", (int)getpid(), call, device);
        }
        close(fd);
    }
}

/* Every call passes here first: noted, delayed, hung, crashed or refused as the control file says. */
static nvmlReturn_t enter(const char *call, int device) {
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

static nvmlReturn_t enter_machine(const char *call) {
    nvmlReturn_t code = enter(call, EVERY);
    return code == NVML_SUCCESS && !initialised ? NVML_ERROR_UNINITIALIZED : code;
}

static nvmlReturn_t enter_device(const char *call, nvmlDevice_t device) {
    if (device < devices || device >= devices + MAX_DEVICES) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    nvmlReturn_t code = enter(call, device->index);
    return code == NVML_SUCCESS && !initialised ? NVML_ERROR_UNINITIALIZED : code;
}

/* ---- answers --------------------------------------------------------------------------------------- */

static nvmlReturn_t copy(const char *fact, char *into, unsigned int length) {
    if (fact == NULL) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    if (strlen(fact) >= length) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    strcpy(into, fact);
    return NVML_SUCCESS;
}

static nvmlReturn_t number(const char *fact, unsigned long long *into) {
    if (fact == NULL) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *into = strtoull(fact, NULL, 0);
    return NVML_SUCCESS;
}

static nvmlReturn_t answer_number(const char *call, nvmlDevice_t device, const char *key, unsigned int *into) {
    unsigned long long wide = 0;
    nvmlReturn_t code = enter_device(call, device);
    if (code == NVML_SUCCESS) {
        code = number(device_fact(key, device), &wide);
    }
    if (code == NVML_SUCCESS) {
        *into = (unsigned int)wide;
    }
    return code;
}

static nvmlReturn_t answer_wide(const char *call, nvmlDevice_t device, const char *key, unsigned long long *into) {
    nvmlReturn_t code = enter_device(call, device);
    return code == NVML_SUCCESS ? number(device_fact(key, device), into) : code;
}

/* ---- NVML: the library ----------------------------------------------------------------------------- */

static nvmlReturn_t start(const char *call) {
    nvmlReturn_t code = enter(call, EVERY);
    initialised += code == NVML_SUCCESS;
    return code;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return start("nvmlInitWithFlags");
}

nvmlReturn_t nvmlInit_v2(void) { return start("nvmlInit_v2"); }

nvmlReturn_t nvmlShutdown(void) {
    nvmlReturn_t code = enter_machine("nvmlShutdown");
    initialised -= code == NVML_SUCCESS;
    return code;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    static char sentence[64];
    snprintf(sentence, sizeof sentence, "Fake NVML error %d", (int)result);
    return sentence;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    nvmlReturn_t code = enter_machine("nvmlSystemGetDriverVersion");
    return code == NVML_SUCCESS ? copy(machine_fact("driver_version"), version, length) : code;
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    nvmlReturn_t code = enter_machine("nvmlSystemGetNVMLVersion");
    return code == NVML_SUCCESS ? copy(machine_fact("nvml_version"), version, length) : code;
}

static nvmlReturn_t cuda_version(const char *call, int *version) {
    unsigned long long wide = 0;
    nvmlReturn_t code = enter_machine(call);
    if (code == NVML_SUCCESS) {
        code = number(machine_fact("cuda_version"), &wide);
    }
    *version = (int)wide;
    return code;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return cuda_version("nvmlSystemGetCudaDriverVersion", version);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return cuda_version("nvmlSystemGetCudaDriverVersion_v2", version);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    unsigned long long wide = 0;
    nvmlReturn_t code = enter_machine("nvmlDeviceGetCount_v2");
    if (code == NVML_SUCCESS) {
        number(machine_fact("count"), &wide);
        *count = (unsigned int)(wide < MAX_DEVICES ? wide : MAX_DEVICES);
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    unsigned long long count = 0;
    nvmlReturn_t code = enter("nvmlDeviceGetHandleByIndex_v2", (int)index);
    if (code != NVML_SUCCESS) {
        return code;
    }
    number(machine_fact("count"), &count);
    if (!initialised) {
        return NVML_ERROR_UNINITIALIZED;
    }
    if (index >= count || index >= MAX_DEVICES) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    devices[index].index = (int)index;
    *device = &devices[index];
    return NVML_SUCCESS;
}

/* ---- NVML: who a device is ------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetIndex", device);
    if (code == NVML_SUCCESS) {
        *index = (unsigned int)device->index;
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetUUID", device);
    return code == NVML_SUCCESS ? copy(device_fact("uuid", device), uuid, length) : code;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetName", device);
    return code == NVML_SUCCESS ? copy(device_fact("name", device), name, length) : code;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetCudaComputeCapability", device);
    const char *fact = code == NVML_SUCCESS ? device_fact("compute_capability", device) : NULL;
    if (code == NVML_SUCCESS && (fact == NULL || sscanf(fact, "%d.%d", major, minor) != 2)) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetPciInfo_v3", device);
    const char *fact = code == NVML_SUCCESS ? device_fact("pci_bus_id", device) : NULL;
    if (code != NVML_SUCCESS) {
        return code;
    }
    memset(pci, 0, sizeof *pci);
    if (fact == NULL || sscanf(fact, "%x:%x:%x.0", &pci->domain, &pci->bus, &pci->device) != 3) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    snprintf(pci->busId, sizeof pci->busId, NVML_DEVICE_PCI_BUS_ID_FMT, NVML_DEVICE_PCI_BUS_ID_FMT_ARGS(pci));
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, NVML_DEVICE_PCI_BUS_ID_LEGACY_FMT,
             pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    nvmlReturn_t code = answer_number("nvmlDeviceGetMigMode", device, "mig", current);
    if (code == NVML_SUCCESS) {
        *pending = *current;
    }
    return code;
}

/* ---- NVML: what a device does ---------------------------------------------------------------------- */

struct memory {
    unsigned long long total, reserved, used;
};

static nvmlReturn_t memory_of(const char *call, nvmlDevice_t device, struct memory *memory) {
    nvmlReturn_t code = enter_device(call, device);
    if (code != NVML_SUCCESS) {
        return code;
    }
    memory->reserved = 0;
    number(device_fact("memory_reserved", device), &memory->reserved);
    code = number(device_fact("memory_used", device), &memory->used);
    return code == NVML_SUCCESS ? number(device_fact("memory_total", device), &memory->total) : code;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    struct memory read;
    nvmlReturn_t code = memory_of("nvmlDeviceGetMemoryInfo", device, &read);
    if (code == NVML_SUCCESS) {
        memory->total = read.total;
        memory->used = read.used + read.reserved;
        memory->free = memory->total - memory->used;
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    struct memory read;
    nvmlReturn_t code = memory_of("nvmlDeviceGetMemoryInfo_v2", device, &read);
    if (code == NVML_SUCCESS && memory->version != nvmlMemory_v2) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    if (code == NVML_SUCCESS) {
        memory->total = read.total;
        memory->reserved = read.reserved;
        memory->used = read.used;
        memory->free = read.total - read.used - read.reserved;
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    nvmlReturn_t code =
        answer_number("nvmlDeviceGetUtilizationRates", device, "utilization", &utilization->gpu);
    unsigned long long wide = 0;
    if (code == NVML_SUCCESS) {
        number(device_fact("memory_utilization", device), &wide);
        utilization->memory = (unsigned int)wide;
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *degrees) {
    if (sensor != NVML_TEMPERATURE_GPU) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return answer_number("nvmlDeviceGetTemperature", device, "temperature", degrees);
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    unsigned int degrees = 0;
    nvmlReturn_t code = answer_number("nvmlDeviceGetTemperatureV", device, "temperature", &degrees);
    if (code == NVML_SUCCESS && temperature->version != nvmlTemperature_v1) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    temperature->temperature = (int)degrees;
    return code;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    return answer_number("nvmlDeviceGetPowerUsage", device, "power_mw", milliwatts);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    return answer_number("nvmlDeviceGetEnforcedPowerLimit", device, "power_limit_mw", milliwatts);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    return answer_number("nvmlDeviceGetPowerManagementLimit", device, "power_limit_mw", milliwatts);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t clock, unsigned int *mhz) {
    return answer_number("nvmlDeviceGetClockInfo", device, clock == NVML_CLOCK_MEM ? "clock_memory_mhz" : "clock_sm_mhz", mhz);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return answer_wide("nvmlDeviceGetCurrentClocksEventReasons", device, "clocks_event_reasons", reasons);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return answer_wide("nvmlDeviceGetCurrentClocksThrottleReasons", device, "clocks_event_reasons", reasons);
}

/* ---- NVML: what only other tools ask, so that a comparison with them is fair -------------------------- */

nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *percent) {
    return answer_number("nvmlDeviceGetFanSpeed", device, "fan_percent", percent);
}

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *state) {
    return answer_number("nvmlDeviceGetPerformanceState", device, "performance_state", state);
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode) {
    return answer_number("nvmlDeviceGetComputeMode", device, "compute_mode", mode);
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
    return answer_number("nvmlDeviceGetPersistenceMode", device, "persistence_mode", mode);
}

nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t *active) {
    return answer_number("nvmlDeviceGetDisplayActive", device, "display_active", active);
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us) {
    *period_us = 0;
    return answer_number("nvmlDeviceGetEncoderUtilization", device, "encoder_percent", percent);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us) {
    *period_us = 0;
    return answer_number("nvmlDeviceGetDecoderUtilization", device, "decoder_percent", percent);
}

/* Windows only on true drivers, which answer NOT_SUPPORTED elsewhere. */
nvmlReturn_t nvmlDeviceGetDriverModel(nvmlDevice_t device, nvmlDriverModel_t *current, nvmlDriverModel_t *pending) {
    (void)current;
    (void)pending;
    nvmlReturn_t code = enter_device("nvmlDeviceGetDriverModel", device);
    return code == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : code;
}

/* ---- NVML: how well a device is -------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                         nvmlEccCounterType_t counter, unsigned long long *count) {
    (void)counter;
    return answer_wide("nvmlDeviceGetTotalEccErrors", device,
                       type == NVML_MEMORY_ERROR_TYPE_UNCORRECTED ? "ecc_uncorrected" : "ecc_corrected", count);
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, nvmlEnableState_t *pending) {
    unsigned int state = 0;
    nvmlReturn_t code =
        answer_number("nvmlDeviceGetRetiredPagesPendingStatus", device, "retired_pages_pending", &state);
    *pending = state != 0 ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return code;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failed) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetRemappedRows", device);
    const char *fact = code == NVML_SUCCESS ? device_fact("remapped_rows", device) : NULL;
    if (code == NVML_SUCCESS &&
        (fact == NULL || sscanf(fact, "%u %u %u %u", corrected, uncorrected, pending, failed) != 4)) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    return code;
}

/* ---- NVML: who uses a device ----------------------------------------------------------------------- */

/* `process device pid bytes`, one line for each. */
static nvmlReturn_t processes(const char *call, nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) {
    nvmlReturn_t code = enter_device(call, device);
    unsigned int found = 0;
    if (code != NVML_SUCCESS) {
        return code;
    }
    for (int i = 0; i < line_count; i++) {
        if (lines[i].count < 4 || strcmp(lines[i].words[0], "process") != 0 || !means(lines[i].words[1], device->index)) {
            continue;
        }
        if (infos != NULL && found < *count) {
            infos[found].pid = (unsigned int)atoi(lines[i].words[2]);
            infos[found].usedGpuMemory = strtoull(lines[i].words[3], NULL, 0);
            infos[found].gpuInstanceId = infos[found].computeInstanceId = 0xFFFFFFFFu;
        }
        found++;
    }
    code = found > *count || (infos == NULL && found > 0) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
    *count = found;
    return code;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_t *infos) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", device, count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_t *infos) {
    (void)infos;
    *count = 0;
    return enter_device("nvmlDeviceGetGraphicsRunningProcesses_v3", device);
}
