/*
 * The fake's MIG mode and MIG devices: `mig DEV 1`, `mig_slots DEV COUNT`, and `mig_device DEV/SLOT GI CI` for
 * each MIG device.
 *
 * A MIG device is a device like any other: `uuid 0/2 MIG-…`, `memory_total 0/2 …`, `error CALL 0/2 …`.
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

/* `mig_device DEV/SLOT GI CI`: the instance ids of the MIG device in that slot; 0 when the slot is empty. */
static int mig_device_ids(nvmlDevice_t mig_device, unsigned int *gpu_instance, unsigned int *compute_instance) {
    const char *fact = device_fact("mig_device", mig_device);
    return fact != NULL && sscanf(fact, "%u %u", gpu_instance, compute_instance) == 2;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    return answer_number("nvmlDeviceGetMaxMigDeviceCount", device, "mig_slots", count);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig_device) {
    unsigned int ids[2];
    nvmlDevice_t found = device_at((unsigned int)device->index, (int)index);
    if (found == NULL) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    nvmlReturn_t code = enter_device("nvmlDeviceGetMigDeviceHandleByIndex", found);
    if (code == NVML_SUCCESS && !mig_device_ids(found, &ids[0], &ids[1])) {
        return NVML_ERROR_NOT_FOUND;
    }
    if (code == NVML_SUCCESS) {
        *mig_device = found;
    }
    return code;
}

static nvmlReturn_t instance(const char *call, nvmlDevice_t mig_device, int which, unsigned int *id) {
    unsigned int ids[2];
    nvmlReturn_t code = enter_device(call, mig_device);
    if (code == NVML_SUCCESS && !mig_device_ids(mig_device, &ids[0], &ids[1])) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    if (code == NVML_SUCCESS) {
        *id = ids[which];
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t mig_device, unsigned int *id) {
    return instance("nvmlDeviceGetGpuInstanceId", mig_device, 0, id);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t mig_device, unsigned int *id) {
    return instance("nvmlDeviceGetComputeInstanceId", mig_device, 1, id);
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig_device, nvmlDevice_t *device) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", mig_device);
    if (code == NVML_SUCCESS) {
        *device = device_at((unsigned int)mig_device->index, WHOLE);
    }
    return code;
}
