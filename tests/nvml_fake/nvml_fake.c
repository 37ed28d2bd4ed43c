/*
 * An NVML of ours: the true ABI of NVIDIA's own nvml.h, driven by a plain-text file.
 *
 * Programs under test load it as libnvidia-ml.so.1 through LD_LIBRARY_PATH, so that the real binding runs
 * against real structs. Here: the library, and who a GPU is, does and suffers. MIG devices and processes
 * have files of their own.
 */
#include "nvml_fake.h"

#include <stdio.h>
#include <string.h>

/* ---- NVML: the library ----------------------------------------------------------------------------- */

static unsigned long long count_when_opened;

static unsigned long long device_count(void) {
    unsigned long long count = 0;
    number(machine_fact("count"), &count);
    return machine_fact("counted_once") == NULL ? count : count_when_opened;
}

static nvmlReturn_t start(const char *call) {
    nvmlReturn_t code = enter(call, NULL);
    if (code == NVML_SUCCESS && initialised++ == 0) {
        number(machine_fact("count"), &count_when_opened);
    }
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
    nvmlReturn_t code = enter_machine("nvmlDeviceGetCount_v2");
    if (code == NVML_SUCCESS) {
        *count = (unsigned int)device_count();
    }
    return code;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    nvmlDevice_t found = device_at(index, WHOLE);
    nvmlReturn_t code = enter("nvmlDeviceGetHandleByIndex_v2", found);
    if (code != NVML_SUCCESS) {
        return code;
    }
    if (!initialised) {
        return NVML_ERROR_UNINITIALIZED;
    }
    if (found == NULL || index >= device_count()) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *device = found;
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
