/*
 * The processes that hold the fake's GPUs: `process DEV PID BYTES`, one line for each.
 *
 * Three generations of one call; the first one's struct has no instance ids.
 */
#include "nvml_fake.h"

#include <stdlib.h>
#include <string.h>

#define NO_INSTANCE 0xFFFFFFFFu

static const struct line *next_process(int *position, nvmlDevice_t device) {
    const struct line *line;
    while ((line = line_at((*position)++)) != NULL) {
        if (line->count >= 4 && strcmp(line->words[0], "process") == 0 && means(line->words[1], device)) {
            return line;
        }
    }
    return NULL;
}

/* Count a device's processes, and write as many as there is room for through `write`. */
static nvmlReturn_t processes(const char *call, nvmlDevice_t device, unsigned int *count, void *infos,
                              void (*write)(void *infos, unsigned int place, const struct line *line)) {
    nvmlReturn_t code = enter_device(call, device);
    const struct line *line;
    unsigned int found = 0;
    int position = 0;
    if (code != NVML_SUCCESS) {
        return code;
    }
    while ((line = next_process(&position, device)) != NULL) {
        if (infos != NULL && found < *count) {
            write(infos, found, line);
        }
        found++;
    }
    code = found > *count || (infos == NULL && found > 0) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
    *count = found;
    return code;
}

static void write_old(void *infos, unsigned int place, const struct line *line) {
    nvmlProcessInfo_v1_t *info = (nvmlProcessInfo_v1_t *)infos + place;
    info->pid = (unsigned int)atoi(line->words[2]);
    info->usedGpuMemory = strtoull(line->words[3], NULL, 0);
}

static void write_new(void *infos, unsigned int place, const struct line *line) {
    nvmlProcessInfo_t *info = (nvmlProcessInfo_t *)infos + place;
    info->pid = (unsigned int)atoi(line->words[2]);
    info->usedGpuMemory = strtoull(line->words[3], NULL, 0);
    info->gpuInstanceId = info->computeInstanceId = NO_INSTANCE;
}

/* nvml.h declares this name only where unversioned names stand for their newest version. */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                  nvmlProcessInfo_v1_t *infos) {
    return processes("nvmlDeviceGetComputeRunningProcesses", device, count, infos, write_old);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_v2_t *infos) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v2", device, count, infos, write_new);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_t *infos) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", device, count, infos, write_new);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_t *infos) {
    (void)infos;
    *count = 0;
    return enter_device("nvmlDeviceGetGraphicsRunningProcesses_v3", device);
}
