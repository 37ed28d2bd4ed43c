/*
 * What a device answers by number (field values), and how it is linked to others: NVLink, fabric, PCIe.
 *
 * `nvlinks DEV COUNT` with `nvlinks_down DEV N`, the first N of them. Their replays are `nvlink_errors_total DEV N`,
 * their recoveries 0 unless `nvlink_recoveries_total DEV N` says more; on drivers that count by link `nvlink_errors DEV N`, all of them link 0's,
 * which with `nvlink_silent DEV 1` does not say.
 * `fabric DEV STATE STATUS MASK`; `sram_threshold_exceeded DEV 1`.
 */
#include "nvml_fake.h"

#include <stdio.h>
#include <string.h>

/* ---- field values ---------------------------------------------------------------------------------- */

static nvmlReturn_t of_link(nvmlDevice_t device, nvmlFieldValue_t *value) {
    unsigned long long links = 0, wide = 0;
    if (number(device_fact("nvlinks", device), &links) != NVML_SUCCESS || value->scopeId >= links) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    if (value->fieldId == NVML_FI_DEV_NVLINK_GET_STATE) {
        number(device_fact("nvlinks_down", device), &wide);
        value->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        value->value.uiVal = value->scopeId < wide ? NVML_NVLINK_STATE_INACTIVE : NVML_NVLINK_STATE_ACTIVE;
        return NVML_SUCCESS;
    }
    if (value->scopeId == 0 && device_fact("nvlink_silent", device) != NULL) {
        return NVML_ERROR_UNKNOWN;
    }
    nvmlReturn_t code = number(device_fact("nvlink_errors", device), &wide);
    value->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    value->value.ullVal =
        value->fieldId == NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY && value->scopeId == 0 ? wide : 0;
    return code;
}

/* `recovery_action DEVICE N`, or `recovery_action DEVICE error CODE` for the code that the field itself has. */
static nvmlReturn_t of_device(const char *fact, nvmlFieldValue_t *value) {
    unsigned long long wide = 0;
    if (fact != NULL && strncmp(fact, "error ", 6) == 0) {
        return code_named(fact + 6);
    }
    nvmlReturn_t code = number(fact, &wide);
    value->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    value->value.ullVal = wide;
    return code;
}

static nvmlReturn_t recoveries(nvmlDevice_t device, nvmlFieldValue_t *value) {
    const char *own = device_fact("nvlink_recoveries_total", device);
    if (own != NULL) {
        return of_device(own, value);
    }
    nvmlReturn_t code = of_device(device_fact("nvlink_errors_total", device), value);
    value->value.ullVal = 0;
    return code;
}

static nvmlReturn_t field(nvmlDevice_t device, nvmlFieldValue_t *value) {
    switch (value->fieldId) {
    case NVML_FI_DEV_GET_GPU_RECOVERY_ACTION:
        return of_device(device_fact("recovery_action", device), value);
    case NVML_FI_DEV_NVLINK_LINK_COUNT:
        return of_device(device_fact("nvlinks", device), value);
    case NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL:
        return of_device(device_fact("nvlink_errors_total", device), value);
    case NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL:
        return recoveries(device, value);
    case NVML_FI_DEV_NVLINK_GET_STATE:
    case NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY:
    case NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY:
        return of_link(device, value);
    default:
        return NVML_ERROR_INVALID_ARGUMENT; /* as true drivers say of fields that are newer than themselves */
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    nvmlReturn_t code = enter_device("nvmlDeviceGetFieldValues", device);
    for (int i = 0; code == NVML_SUCCESS && i < count; i++) {
        values[i].nvmlReturn = field(device, &values[i]);
    }
    return code;
}

/* ---- the fabric ------------------------------------------------------------------------------------ */

struct fabric {
    unsigned int state, status, mask;
};

static nvmlReturn_t fabric_of(const char *call, nvmlDevice_t device, struct fabric *fabric) {
    nvmlReturn_t code = enter_device(call, device);
    const char *fact = code == NVML_SUCCESS ? device_fact("fabric", device) : NULL;
    memset(fabric, 0, sizeof *fabric);
    if (code == NVML_SUCCESS &&
        (fact == NULL || sscanf(fact, "%u %u %i", &fabric->state, &fabric->status, (int *)&fabric->mask) < 1)) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    return code;
}

/* The bytes behind the state are padding, and hold whatever they held. */
nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *info) {
    struct fabric fabric;
    nvmlReturn_t code = fabric_of("nvmlDeviceGetGpuFabricInfoV", device, &fabric);
    if (code == NVML_SUCCESS && info->version != nvmlGpuFabricInfo_v2 && info->version != nvmlGpuFabricInfo_v3) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    if (code == NVML_SUCCESS) {
        memset(&info->state, 0xA5, sizeof info->healthMask);
        info->state = (nvmlGpuFabricState_t)fabric.state;
        info->status = (nvmlReturn_t)fabric.status;
        info->healthMask = fabric.mask;
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
    struct fabric fabric;
    nvmlReturn_t code = fabric_of("nvmlDeviceGetGpuFabricInfo", device, &fabric);
    if (code == NVML_SUCCESS) {
        info->state = (nvmlGpuFabricState_t)fabric.state;
        info->status = (nvmlReturn_t)fabric.status;
    }
    return code;
}

/* ---- PCIe, and counters ---------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation) {
    return answer_number("nvmlDeviceGetCurrPcieLinkGeneration", device, "pcie_generation", generation);
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation) {
    return answer_number("nvmlDeviceGetMaxPcieLinkGeneration", device, "pcie_generation_max", generation);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *lanes) {
    return answer_number("nvmlDeviceGetCurrPcieLinkWidth", device, "pcie_width", lanes);
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *lanes) {
    return answer_number("nvmlDeviceGetMaxPcieLinkWidth", device, "pcie_width_max", lanes);
}

nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned int *replays) {
    return answer_number("nvmlDeviceGetPcieReplayCounter", device, "pcie_replays", replays);
}

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_t *status) {
    unsigned int exceeded = 0;
    nvmlReturn_t code =
        answer_number("nvmlDeviceGetSramEccErrorStatus", device, "sram_threshold_exceeded", &exceeded);
    if (code == NVML_SUCCESS && status->version != nvmlEccSramErrorStatus_v1) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    status->bThresholdExceeded = exceeded;
    return code;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    return answer_wide("nvmlDeviceGetTotalEnergyConsumption", device, "energy_mj", millijoules);
}
