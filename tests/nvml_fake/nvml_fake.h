/*
 * What the parts of the fake NVML share: the control file's facts and faults, and the ways to answer.
 *
 * Every exported call passes through `enter_machine` or `enter_device` first, then answers from facts.
 * Nothing declared here leaves the library: only NVML's own names do.
 */
#ifndef NVML_FAKE_H
#define NVML_FAKE_H

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#define MAX_DEVICES 64
#define MAX_SLOTS 8
#define MAX_WORDS 6
#define WORD_LENGTH 96
#define WHOLE (-1)

/* A GPU (`slot` is WHOLE), or the MIG device in one of its slots. */
struct nvmlDevice_st {
    int index;
    int slot;
};

/* One line of the control file: its words (the last one takes the rest), and the line as written. */
struct line {
    char words[MAX_WORDS][WORD_LENGTH];
    int count;
    char text[512];
};

#pragma GCC visibility push(hidden)

extern int initialised;

/* ---- control.c: what the file states ---------------------------------------------------------------- */

/* The lines as last read; `line_at` gives NULL behind the last one. */
const struct line *line_at(int position);

/* Whether a device word (`3`, `3/1` for a MIG device, `*` for every one) means this device; NULL is the machine. */
int means(const char *word, nvmlDevice_t device);

/* The text after the first `skipped` words of a line, spaces and all. */
const char *after(const struct line *line, int skipped);

/* `key value`: a fact about the machine. */
const char *machine_fact(const char *key);

/* `key device value`: a fact about one device; a line for this device wins over one for every device. */
const char *device_fact(const char *key, nvmlDevice_t device);

/* The device of that place, or NULL where none can be. */
nvmlDevice_t device_at(unsigned int index, int slot);

/* Every call passes here first: noted, delayed, hung, crashed or refused as the control file says. */
nvmlReturn_t enter(const char *call, nvmlDevice_t device);
nvmlReturn_t enter_machine(const char *call);
nvmlReturn_t enter_device(const char *call, nvmlDevice_t device);

/* The code that the file names: `GPU_IS_LOST` or a number. */
nvmlReturn_t code_named(const char *name);

/* ---- answers.c: facts as NVML's values --------------------------------------------------------------- */

nvmlReturn_t copy(const char *fact, char *into, unsigned int length);
nvmlReturn_t number(const char *fact, unsigned long long *into);
nvmlReturn_t answer_number(const char *call, nvmlDevice_t device, const char *key, unsigned int *into);
nvmlReturn_t answer_wide(const char *call, nvmlDevice_t device, const char *key, unsigned long long *into);

#pragma GCC visibility pop

#endif
