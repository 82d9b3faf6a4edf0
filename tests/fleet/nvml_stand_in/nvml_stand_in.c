/* Copyright: gpufleet.llm contributors
 * GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A STAND-IN for NVIDIA's libnvidia-ml.so.1: no GPU, no driver, only answers read from a profile file
 * ($GPUFLEET_NVML_PROFILE, else /etc/gpufleet-nvml-profile). Names, numbers and layouts are those of nvml.h, so that the
 * real nvidia-ml-py and the collection's own binding talk to it. Format of profiles: README.md beside this file.
 *
 * A key that the profile does not have answers NVML_ERROR_NOT_SUPPORTED, "error N" as a value answers N, "hang" sleeps.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef int nvmlReturn_t;
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       OPERATING_SYSTEM = 17, VERSION_MISMATCH = 25 };

#define MAX_SECTIONS 256
#define MAX_KEYS 64

typedef struct {
    char kind[24];
    int parent;  /* index of the [gpu] that a [mig], [nvlink] or [process] follows, else -1 */
    int keys;
    char key[MAX_KEYS][40];
    char value[MAX_KEYS][120];
} section;

typedef section *nvmlDevice_t;

static section sections[MAX_SECTIONS];
static int section_count;
static int initialised;

static char *strip(char *text) {
    while (*text == ' ' || *text == '\t') text++;
    size_t length = strlen(text);
    while (length && strchr(" \t\r\n", text[length - 1])) text[--length] = 0;
    return text;
}

static int load_profile(void) {
    const char *path = getenv("GPUFLEET_NVML_PROFILE");
    FILE *file = fopen(path && *path ? path : "/etc/gpufleet-nvml-profile", "r");
    char line[400];
    int gpu = -1;
    section_count = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        char *text = strip(line);
        if (!*text || *text == '#') continue;
        if (*text == '[') {
            if (section_count == MAX_SECTIONS) break;
            section *next = &sections[section_count];
            memset(next, 0, sizeof *next);
            text[strcspn(text, "]")] = 0;
            snprintf(next->kind, sizeof next->kind, "%s", text + 1);
            if (!strcmp(next->kind, "gpu")) { gpu = section_count; next->parent = -1; }
            else next->parent = strcmp(next->kind, "node") ? gpu : -1;
            section_count++;
            continue;
        }
        char *equals = strchr(text, '=');
        if (!equals || !section_count) continue;
        section *here = &sections[section_count - 1];
        if (here->keys == MAX_KEYS) continue;
        *equals = 0;
        snprintf(here->key[here->keys], sizeof here->key[0], "%s", strip(text));
        snprintf(here->value[here->keys], sizeof here->value[0], "%s", strip(equals + 1));
        here->keys++;
    }
    fclose(file);
    return 1;
}

/* The value of a key. NULL with *code set when there is none, or when the value is an error. */
static const char *value_of(const section *here, const char *key, nvmlReturn_t *code) {
    *code = NOT_SUPPORTED;
    for (int i = 0; here && i < here->keys; i++) {
        if (strcmp(here->key[i], key)) continue;
        if (!strcmp(here->value[i], "hang")) for (;;) sleep(3600);
        if (!strncmp(here->value[i], "error ", 6)) { *code = atoi(here->value[i] + 6); return NULL; }
        *code = OK;
        return here->value[i];
    }
    return NULL;
}

static const section *node(void) {
    for (int i = 0; i < section_count; i++) if (!strcmp(sections[i].kind, "node")) return &sections[i];
    return NULL;
}

/* The n-th section of a kind below a GPU (or of all, for "gpu"). */
static section *nth(const char *kind, const section *parent, unsigned wanted) {
    for (int i = 0; i < section_count; i++) {
        if (strcmp(sections[i].kind, kind)) continue;
        if (parent && (sections[i].parent < 0 || &sections[sections[i].parent] != parent)) continue;
        if (!wanted--) return &sections[i];
    }
    return NULL;
}

static nvmlReturn_t text(const section *here, const char *key, char *out, unsigned length) {
    nvmlReturn_t code;
    const char *value = value_of(here, key, &code);
    if (!initialised) return UNINITIALIZED;
    if (!value) return code;
    if (strlen(value) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return OK;
}

static nvmlReturn_t number(const section *here, const char *key, unsigned long long *out) {
    nvmlReturn_t code;
    const char *value = value_of(here, key, &code);
    if (!initialised) return UNINITIALIZED;
    if (!value) return code;
    *out = !strcasecmp(value, "on") ? 1 : !strcasecmp(value, "off") ? 0 : strtoull(value, NULL, 0);
    return OK;
}

static nvmlReturn_t number32(const section *here, const char *key, unsigned *out) {
    unsigned long long wide = 0;
    nvmlReturn_t code = number(here, key, &wide);
    if (code == OK) *out = (unsigned)wide;
    return code;
}

static nvmlReturn_t milli(const section *here, const char *key, unsigned *out) {
    nvmlReturn_t code;
    const char *value = value_of(here, key, &code);
    if (!initialised) return UNINITIALIZED;
    if (!value) return code;
    *out = (unsigned)(strtod(value, NULL) * 1000 + 0.5);
    return OK;
}

static nvmlReturn_t init(void) {
    nvmlReturn_t code;
    const char *value;
    if (!load_profile()) return 9;
    value = value_of(node(), "init", &code);
    if (!value && code != NOT_SUPPORTED) return code;
    initialised++;
    return OK;
}

nvmlReturn_t nvmlInit_v2(void) { return init(); }
nvmlReturn_t nvmlInitWithFlags(unsigned flags) { (void)flags; return init(); }
nvmlReturn_t nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return OK; }

const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 7: return "Insufficient Size";
    case 8: return "Insufficient External Power";
    case 9: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 11: return "Interrupt Request Issue";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case 14: return "Corrupted infoROM";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 17: return "GPU access blocked by the operating system";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) { return text(node(), "driver_version", out, length); }
nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned length) { return text(node(), "nvml_version", out, length); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *out) { return number32(node(), "cuda_driver_api", (unsigned *)out); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }

nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *out, unsigned length) {
    for (unsigned i = 0;; i++) {
        unsigned found = 0;
        section *process = nth("process", NULL, i);
        if (!process) return NOT_FOUND;
        if (number32(process, "pid", &found) == OK && found == pid) return text(process, "name", out, length);
    }
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
    if (!initialised) return UNINITIALIZED;
    for (*out = 0; nth("gpu", NULL, *out); (*out)++) {}
    return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    nvmlReturn_t code;
    section *gpu = nth("gpu", NULL, index);
    if (!initialised) return UNINITIALIZED;
    if (!gpu) return INVALID_ARGUMENT;
    if (!value_of(gpu, "handle", &code) && code != NOT_SUPPORTED) return code;
    *out = gpu;
    return OK;
}

typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

static void fill_pci(const char *address, nvmlPciInfo_t *out) {
    sscanf(address, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->busId, sizeof out->busId, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
    snprintf(out->busIdLegacy, sizeof out->busIdLegacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff, out->device & 0xff);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t gpu, nvmlPciInfo_t *out) {
    nvmlReturn_t code;
    const char *address = value_of(gpu, "pci", &code), *id;
    unsigned device = 0, vendor = 0;
    if (!address) return code;
    memset(out, 0, sizeof *out);
    fill_pci(address, out);
    /* Ids are written vendor:device, as lspci -n writes them. */
    if ((id = value_of(gpu, "pci_id", &code)) && sscanf(id, "%x:%x", &vendor, &device) == 2) out->pciDeviceId = device << 16 | vendor;
    if ((id = value_of(gpu, "pci_subsystem", &code)) && sscanf(id, "%x:%x", &vendor, &device) == 2)
        out->pciSubSystemId = device << 16 | vendor;
    return OK;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t gpu, char *out, unsigned length) { return text(gpu, "name", out, length); }
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t gpu, char *out, unsigned length) { return text(gpu, "uuid", out, length); }
nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t gpu, char *out, unsigned length) { return text(gpu, "serial", out, length); }
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t gpu, unsigned *out) { return number32(gpu, "minor_number", out); }
nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t gpu, unsigned *out) { return number32(gpu, "persistence_mode", out); }
nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t gpu, unsigned *out) { return number32(gpu, "display_active", out); }
nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t gpu, unsigned *out) { return number32(gpu, "compute_mode", out); }

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t gpu, unsigned *out) {
    static const char *names[] = {"", "", "kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell"};
    nvmlReturn_t code;
    const char *value = value_of(gpu, "architecture", &code);
    if (!value) return code;
    for (unsigned i = 2; i < sizeof names / sizeof *names; i++) if (!strcmp(names[i], value)) { *out = i; return OK; }
    *out = 0xffffffff;
    return OK;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t gpu, int *major, int *minor) {
    nvmlReturn_t code;
    const char *value = value_of(gpu, "compute_capability", &code);
    if (!value) return code;
    return sscanf(value, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t gpu, nvmlMemory_v2_t *out) {
    unsigned long long mib = 0;
    nvmlReturn_t code = number(gpu, "memory_total_mib", &mib);
    if (code != OK) return code;
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    out->total = mib << 20;
    out->reserved = number(gpu, "memory_reserved_mib", &mib) == OK ? mib << 20 : 0;
    out->used = number(gpu, "memory_used_mib", &mib) == OK ? mib << 20 : 0;
    out->free = out->total - out->reserved - out->used;
    return OK;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t gpu, nvmlMemory_t *out) {
    nvmlMemory_v2_t newer = {.version = sizeof newer | 2u << 24};
    nvmlReturn_t code = nvmlDeviceGetMemoryInfo_v2(gpu, &newer);
    if (code != OK) return code;
    /* The older function counts the reservation as used. */
    *out = (nvmlMemory_t){newer.total, newer.free, newer.used + newer.reserved};
    return OK;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t gpu, unsigned *out) { return milli(gpu, "power_limit_watts", out); }
nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t gpu, unsigned *out) { return milli(gpu, "power_limit_watts", out); }
nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t gpu, unsigned *out) {
    return milli(gpu, "power_limit_default_watts", out);
}
nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t gpu, unsigned *low, unsigned *high) {
    nvmlReturn_t code = milli(gpu, "power_limit_min_watts", low);
    return code == OK ? milli(gpu, "power_limit_max_watts", high) : code;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t gpu, unsigned *out) { return milli(gpu, "power_draw_watts", out); }

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t gpu, unsigned sensor, unsigned *out) {
    return sensor ? INVALID_ARGUMENT : number32(gpu, "temperature_celsius", out);
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t gpu, unsigned threshold, unsigned *out) {
    return threshold == 0 ? number32(gpu, "temperature_shutdown_celsius", out)
         : threshold == 1 ? number32(gpu, "temperature_slowdown_celsius", out) : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t gpu, unsigned long long *out) {
    return number(gpu, "throttle_reasons", out);
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t gpu, unsigned long long *out) {
    return number(gpu, "throttle_reasons", out);
}

typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t gpu, nvmlUtilization_t *out) {
    nvmlReturn_t code = number32(gpu, "utilization_gpu_percent", &out->gpu);
    return code == OK ? number32(gpu, "utilization_memory_percent", &out->memory) : code;
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t gpu, unsigned *current, unsigned *pending) {
    nvmlReturn_t code = number32(gpu, "ecc", current);
    if (code == OK && number32(gpu, "ecc_pending", pending) != OK) *pending = *current;
    return code;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t gpu, unsigned type, unsigned counter, unsigned long long *out) {
    static const char *keys[2][2] = {{"ecc_corrected_volatile", "ecc_corrected_aggregate"},
                                     {"ecc_uncorrected_volatile", "ecc_uncorrected_aggregate"}};
    return type > 1 || counter > 1 ? INVALID_ARGUMENT : number(gpu, keys[type][counter], out);
}
nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t gpu, unsigned *out) {
    return number32(gpu, "retired_pages_pending", out);
}
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    nvmlReturn_t code = number32(gpu, "remapped_rows_corrected", corrected);
    if (code != OK) return code;
    if (number32(gpu, "remapped_rows_uncorrected", uncorrected) != OK) *uncorrected = 0;
    if (number32(gpu, "remapped_rows_pending", pending) != OK) *pending = 0;
    if (number32(gpu, "remapped_rows_failed", failed) != OK) *failed = 0;
    return OK;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t gpu, unsigned *current, unsigned *pending) {
    nvmlReturn_t code = number32(gpu, "mig", current);
    if (code == OK && number32(gpu, "mig_pending", pending) != OK) *pending = *current;
    return code;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t gpu, unsigned *out) {
    unsigned mode;
    if (number32(gpu, "mig", &mode) != OK) { *out = 0; return OK; }
    *out = 7;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t gpu, unsigned index, nvmlDevice_t *out) {
    section *device = nth("mig", gpu, index);
    if (!device) return NOT_FOUND;
    *out = device;
    return OK;
}
nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t mig, unsigned *out) { return number32(mig, "gpu_instance_id", out); }
nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t mig, unsigned *out) { return number32(mig, "compute_instance_id", out); }

typedef struct {
    unsigned multiprocessorCount, copyEngines, decoders, encoders, jpegs, ofas, gpuInstanceSlices, computeInstanceSlices;
    unsigned long long memorySizeMB;
} nvmlDeviceAttributes_t;
nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t mig, nvmlDeviceAttributes_t *out) {
    nvmlReturn_t code;
    memset(out, 0, sizeof *out);
    code = number32(mig, "multiprocessor_count", &out->multiprocessorCount);
    if (code != OK) return code;
    number32(mig, "gpu_slices", &out->gpuInstanceSlices);
    number32(mig, "compute_slices", &out->computeInstanceSlices);
    number(mig, "memory_total_mib", &out->memorySizeMB);
    return OK;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t gpu, unsigned link, unsigned *out) {
    section *here = nth("nvlink", gpu, link);
    if (!here) return nth("nvlink", gpu, 0) ? INVALID_ARGUMENT : NOT_SUPPORTED;
    return number32(here, "active", out);
}
nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t gpu, unsigned link, unsigned *out) {
    return number32(nth("nvlink", gpu, link), "version", out);
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t gpu, unsigned link, nvmlPciInfo_t *out) {
    nvmlReturn_t code;
    const char *address = value_of(nth("nvlink", gpu, link), "remote", &code);
    if (!address) return code;
    memset(out, 0, sizeof *out);
    fill_pci(address, out);
    return OK;
}

typedef struct { unsigned char uuid[16]; unsigned status, clique, state; } nvmlGpuFabricInfo_t;
nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t gpu, nvmlGpuFabricInfo_t *out) {
    memset(out, 0, sizeof *out);
    return number32(gpu, "fabric_state", &out->state);
}
typedef struct { unsigned version; unsigned char uuid[16]; unsigned status, clique, state, health; } nvmlGpuFabricInfo_v2_t;
nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t gpu, nvmlGpuFabricInfo_v2_t *out) {
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    return number32(gpu, "fabric_state", &out->state);
}

typedef struct { unsigned pid; unsigned long long usedGpuMemory; unsigned gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
static nvmlReturn_t processes(nvmlDevice_t gpu, const char *type, unsigned *count, nvmlProcessInfo_t *out) {
    unsigned found = 0, room = *count;
    nvmlReturn_t code;
    section *process;
    if (!value_of(gpu, "processes", &code)) return code;
    for (unsigned i = 0; (process = nth("process", gpu, i)); i++) {
        const char *value = value_of(process, "type", &code);
        unsigned long long mib;
        if (!value || !strstr(value, type)) continue;
        if (out && found < room) {
            number32(process, "pid", &out[found].pid);
            /* Not known in some modes: all ones. */
            out[found].usedGpuMemory = number(process, "memory_used_mib", &mib) == OK ? mib << 20 : ~0ULL;
            out[found].gpuInstanceId = out[found].computeInstanceId = 0xffffffff;
        }
        found++;
    }
    *count = found;
    return found > room || (found && !out) ? INSUFFICIENT_SIZE : OK;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t gpu, unsigned *count, nvmlProcessInfo_t *out) {
    return processes(gpu, "C", count, out);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t gpu, unsigned *count, nvmlProcessInfo_t *out) {
    return processes(gpu, "G", count, out);
}
