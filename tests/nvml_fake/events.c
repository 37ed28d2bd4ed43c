/*
 * What a device tells as it happens: event sets.
 *
 * `xid DEVICE NUMBER` is an event each time that the control file gains such a line: an event set that
 * listens to the device is told of the lines beyond those that were there when it was registered.
 * `double_bit_error DEVICE N` likewise. Every open set holds a file open, as a true one does. The sets that
 * listen to a device get its events; with `delivered_to DEVICE OTHER` those that listen to the other do, and
 * the event still names its own device.
 */
#include "nvml_fake.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_SETS 256
#define MAX_LISTENED 64

struct listened {
    nvmlDevice_t device;
    unsigned long long types;
    int told;
};

struct nvmlEventSet_st {
    int open;
    int file;
    int count;
    struct listened listened[MAX_LISTENED];
};

static struct nvmlEventSet_st sets[MAX_SETS];

static nvmlEventSet_t known(nvmlEventSet_t set) {
    return set >= sets && set < sets + MAX_SETS && set->open ? set : NULL;
}

static unsigned long long type_of(const struct line *line) {
    if (strcmp(line->words[0], "xid") == 0) {
        return nvmlEventTypeXidCriticalError;
    }
    return strcmp(line->words[0], "double_bit_error") == 0 ? nvmlEventTypeDoubleBitEccError : 0;
}

/* The device that an event line names: a GPU, or a MIG device. */
static nvmlDevice_t named_by(const struct line *line) {
    unsigned int index = 0;
    int slot = WHOLE;
    return sscanf(line->words[1], "%u/%d", &index, &slot) >= 1 ? device_at(index, slot) : NULL;
}

/* Whether those who listen to a device get an event of `source`: its own, or one that is delivered there. */
static int is_delivered_to(nvmlDevice_t device, nvmlDevice_t source) {
    const char *other = source == NULL ? NULL : device_fact("delivered_to", source);
    if (other != NULL) {
        return means(other, device);
    }
    return source != NULL && source->index == device->index;
}

/* The event line for those who listen to a device, behind `skipped` others, or NULL. */
static const struct line *event_line(nvmlDevice_t device, int skipped) {
    const struct line *line;
    for (int i = 0; (line = line_at(i)) != NULL; i++) {
        if (line->count >= 3 && type_of(line) != 0 && is_delivered_to(device, named_by(line)) && skipped-- == 0) {
            return line;
        }
    }
    return NULL;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    nvmlReturn_t code = enter_machine("nvmlEventSetCreate");
    for (int i = 0; code == NVML_SUCCESS && i < MAX_SETS; i++) {
        if (!sets[i].open) {
            memset(&sets[i], 0, sizeof sets[i]);
            sets[i].open = 1;
            sets[i].file = open("/dev/null", O_RDONLY | O_CLOEXEC);
            *set = &sets[i];
            return NVML_SUCCESS;
        }
    }
    return code == NVML_SUCCESS ? NVML_ERROR_INSUFFICIENT_RESOURCES : code;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    nvmlReturn_t code = enter_machine("nvmlEventSetFree");
    if (code == NVML_SUCCESS && known(set) == NULL) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (code == NVML_SUCCESS) {
        close(set->file);
        set->open = 0;
    }
    return code;
}

/* Without a `supported_events` fact a device tells of everything that this fake knows. */
nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetSupportedEventTypes", device);
    *types = nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError | nvmlEventTypePState;
    if (code == NVML_SUCCESS) {
        number(device_fact("supported_events", device), types);
    }
    return code;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    nvmlReturn_t code = enter_device("nvmlDeviceRegisterEvents", device);
    if (code != NVML_SUCCESS) {
        return code;
    }
    if (known(set) == NULL || set->count == MAX_LISTENED) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct listened *listened = &set->listened[set->count++];
    listened->device = device;
    listened->types = types;
    while (event_line(device, listened->told) != NULL) {
        listened->told++;
    }
    return NVML_SUCCESS;
}

/* An error laid on this call hits the sets that listen to that device, as a lost GPU does. */
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    (void)timeout_ms;
    if (known(set) == NULL) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    for (int i = 0; i < set->count; i++) {
        struct listened *listened = &set->listened[i];
        const struct line *line;
        nvmlReturn_t code = enter_device("nvmlEventSetWait_v2", listened->device);
        if (code != NVML_SUCCESS) {
            return code;
        }
        while ((line = event_line(listened->device, listened->told)) != NULL) {
            listened->told++;
            if ((type_of(line) & listened->types) == 0) {
                continue;
            }
            memset(data, 0, sizeof *data);
            data->device = named_by(line);
            data->eventType = type_of(line);
            data->eventData = strtoull(line->words[2], NULL, 0);
            data->gpuInstanceId = data->computeInstanceId = 0xFFFFFFFFu;
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_TIMEOUT;
}
