/*
 * The fake's MIG mode and slices: `mig DEV 1`, `mig_slots DEV COUNT`, and `slice DEV/SLOT GI CI` for each slice.
 *
 * A slice is a device like any other: `uuid 0/2 MIG-…`, `memory_total 0/2 …`, `error CALL 0/2 …`.
 */
#include "nvml_fake.h"

#include <stdio.h>

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    nvmlReturn_t code = answer_number("nvmlDeviceGetMigMode", device, "mig", current);
    if (code == NVML_SUCCESS) {
        *pending = *current;
    }
    return code;
}

/* `slice DEV/SLOT GI CI`: the instance ids of the slice in that slot; 0 when the slot is empty. */
static int slice_ids(nvmlDevice_t slice, unsigned int *gpu_instance, unsigned int *compute_instance) {
    const char *fact = device_fact("slice", slice);
    return fact != NULL && sscanf(fact, "%u %u", gpu_instance, compute_instance) == 2;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    return answer_number("nvmlDeviceGetMaxMigDeviceCount", device, "mig_slots", count);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *slice) {
    unsigned int ids[2];
    nvmlDevice_t found = device_at((unsigned int)device->index, (int)index);
    if (found == NULL) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    nvmlReturn_t code = enter_device("nvmlDeviceGetMigDeviceHandleByIndex", found);
    if (code == NVML_SUCCESS && !slice_ids(found, &ids[0], &ids[1])) {
        return NVML_ERROR_NOT_FOUND;
    }
    if (code == NVML_SUCCESS) {
        *slice = found;
    }
    return code;
}

static nvmlReturn_t instance(const char *call, nvmlDevice_t slice, int which, unsigned int *id) {
    unsigned int ids[2];
    nvmlReturn_t code = enter_device(call, slice);
    if (code == NVML_SUCCESS && !slice_ids(slice, &ids[0], &ids[1])) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    if (code == NVML_SUCCESS) {
        *id = ids[which];
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t slice, unsigned int *id) {
    return instance("nvmlDeviceGetGpuInstanceId", slice, 0, id);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t slice, unsigned int *id) {
    return instance("nvmlDeviceGetComputeInstanceId", slice, 1, id);
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t slice, nvmlDevice_t *device) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", slice);
    if (code == NVML_SUCCESS) {
        *device = device_at((unsigned int)slice->index, WHOLE);
    }
    return code;
}
