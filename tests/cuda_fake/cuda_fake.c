/* The few functions of libcuda that the check of a GPU calls, over plain memory.
 *
 * The file that CUDA_FAKE_CONTROL names says what goes wrong, a line each; UUID is what
 * CUDA_VISIBLE_DEVICES holds, or `*`:
 *
 *     error CALL UUID CODE      the call answers that code
 *     delay CALL UUID MS        the call takes that long
 *     hang CALL UUID            the call blocks, deaf to SIGTERM, until this line is gone
 *     crash CALL UUID           the process dies of SIGSEGV
 *     exit CALL UUID STATUS     the process exits
 *     complain CALL UUID        words on stderr, without the end of a line
 *     corrupt CALL UUID         one byte of what the call copies is wrong
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int stated(const char *word, const char *call, long *value)
{
    const char *path = getenv("CUDA_FAKE_CONTROL"), *own = getenv("CUDA_VISIBLE_DEVICES");
    char line[512], w[32], c[64], uuid[128];
    int found = 0;
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file)
        return 0;
    while (!found && fgets(line, sizeof line, file)) {
        long number = 0;
        if (sscanf(line, "%31s %63s %127s %ld", w, c, uuid, &number) < 3)
            continue;
        if (strcmp(w, word) || strcmp(c, call) || (strcmp(uuid, "*") && (!own || strcmp(uuid, own))))
            continue;
        *value = number;
        found = 1;
    }
    fclose(file);
    return found;
}

static void wait_ms(long ms)
{
    struct timespec span = {ms / 1000, (ms % 1000) * 1000000L};
    nanosleep(&span, NULL);
}

static int enter(const char *call)
{
    long value = 0;
    if (stated("hang", call, &value)) {
        sigset_t term;
        sigemptyset(&term);
        sigaddset(&term, SIGTERM);
        sigprocmask(SIG_BLOCK, &term, NULL); /* it stays pending, as in a call that hangs in the kernel */
        while (stated("hang", call, &value))
            wait_ms(20);
        _Exit(0);
    }
    if (stated("crash", call, &value))
        raise(SIGSEGV);
    if (stated("exit", call, &value))
        exit((int)value);
    if (stated("complain", call, &value))
        fputs("cuda: falling back", stderr);
    if (stated("delay", call, &value))
        wait_ms(value);
    return stated("error", call, &value) ? (int)value : 0;
}

static int copied(const char *call, void *to, const void *from, size_t size)
{
    int result = enter(call);
    long value = 0;
    if (result)
        return result;
    memcpy(to, from, size);
    if (stated("corrupt", call, &value))
        ((char *)to)[size / 2] ^= 1;
    return 0;
}

static int allocated(const char *call, void **memory, size_t size)
{
    int result = enter(call);
    return result ? result : (*memory = malloc(size)) ? 0 : 2;
}

static int released(const char *call, void *memory)
{
    free(memory);
    return enter(call);
}

int cuInit(unsigned flags) { return flags ? 1 : enter("cuInit"); }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return enter("cuDeviceGet"); }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = context; return enter("cuDevicePrimaryCtxRetain"); }
int cuCtxSetCurrent(void *context) { return context ? enter("cuCtxSetCurrent") : 201; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return enter("cuDevicePrimaryCtxRelease_v2"); }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { (void)flags; return allocated("cuMemHostAlloc", memory, size); }
int cuMemFreeHost(void *memory) { return released("cuMemFreeHost", memory); }
int cuMemAlloc_v2(unsigned long long *memory, size_t size) { return allocated("cuMemAlloc_v2", (void **)memory, size); }
int cuMemFree_v2(unsigned long long memory) { return released("cuMemFree_v2", (void *)memory); }
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t size) { return copied("cuMemcpyHtoD_v2", (void *)to, from, size); }
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t size) { return copied("cuMemcpyDtoH_v2", to, (void *)from, size); }

int cuGetErrorName(int code, const char **name)
{
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 46 ? "CUDA_ERROR_DEVICE_UNAVAILABLE" : code == 999 ? "CUDA_ERROR_UNKNOWN" : "CUDA_ERROR_OTHER";
    return 0;
}
