/* The fake's facts as NVML's values; what no line of the control file states is NOT_SUPPORTED. */
#include "nvml_fake.h"

#include <stdlib.h>
#include <string.h>

nvmlReturn_t copy(const char *fact, char *into, unsigned int length) {
    if (fact == NULL) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    if (strlen(fact) >= length) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    strcpy(into, fact);
    return NVML_SUCCESS;
}

nvmlReturn_t number(const char *fact, unsigned long long *into) {
    if (fact == NULL) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *into = strtoull(fact, NULL, 0);
    return NVML_SUCCESS;
}

nvmlReturn_t answer_number(const char *call, nvmlDevice_t device, const char *key, unsigned int *into) {
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

nvmlReturn_t answer_wide(const char *call, nvmlDevice_t device, const char *key, unsigned long long *into) {
    nvmlReturn_t code = enter_device(call, device);
    return code == NVML_SUCCESS ? number(device_fact(key, device), into) : code;
}
