/* A CUDA driver without a device: frames are memory files, address ranges are reserved by mmap, and one stream
 * runs what was launched only when somebody waits for it. Every rule of the virtual memory calls is enforced;
 * a page without access is PROT_NONE, so that touching it ends the process.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"

enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 101, NO_CONTEXT = 201,
       BAD_HANDLE = 400, ILLEGAL_ADDRESS = 700, GRANULE = 65536, MANY = 4096 };

typedef struct { CUdeviceptr at; size_t size; CUmemGenericAllocationHandle handle; int has_access; } mapping;
typedef struct { CUdeviceptr at; size_t size; } reservation;
typedef struct { int fd; size_t size; int is_released, num_mapped; } frame; /* fd 0: none */
typedef struct { CUdeviceptr at, from; size_t size; unsigned char value; int is_copy; } launch;
struct CUevent_st { uint64_t launched; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mapping mappings[MANY];
static reservation reservations[MANY];
static frame frames[MANY];
static launch launches[MANY];
static struct CUevent_st events[MANY];
static int event_used[MANY];
static uint64_t num_launched, num_run;
static int is_initialised, num_contexts, broken;
static size_t memory_bytes = (size_t)1 << 40, used_bytes;
static char failing[64];
static int failing_after, failing_code;
static int64_t num_calls_of_access;
static __thread CUcontext current;

static int enter(const char *name, int needs_context)
{
    pthread_mutex_lock(&lock);
    if (broken) return broken;
    if (!is_initialised && strcmp(name, "cuInit")) return NOT_INITIALIZED;
    if (needs_context && (!current || !num_contexts)) return NO_CONTEXT;
    if (!strcmp(name, failing) && failing_after-- == 0) {
        failing[0] = 0;
        if (failing_code >= 700) broken = failing_code;
        return failing_code;
    }
    return OK;
}

static CUresult leave(CUresult result)
{
    pthread_mutex_unlock(&lock);
    return result;
}

#define ENTER(needs_context) do { int e = enter(__func__, needs_context); if (e) return leave(e); } while (0)
#define REFUSE_IF(condition, code) do { if (condition) return leave(code); } while (0)

static int overlaps(CUdeviceptr a, size_t a_size, CUdeviceptr b, size_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

/* Are all bytes mapped (and accessible), and are only whole mappings covered, where that matters? */
static int is_mapped(CUdeviceptr at, size_t size, int with_access, int whole)
{
    size_t covered = 0;
    for (int i = 0; i < MANY; i++) {
        mapping *m = &mappings[i];
        if (!m->size || !overlaps(at, size, m->at, m->size) || (with_access && !m->has_access)) continue;
        CUdeviceptr begin = m->at > at ? m->at : at;
        CUdeviceptr end = m->at + m->size < at + size ? m->at + m->size : at + size;
        if (whole && end - begin != m->size) return 0;
        covered += end - begin;
    }
    return covered == size;
}

static int run_until(uint64_t end)
{
    for (; num_run < end; num_run++) {
        launch *l = &launches[num_run % MANY];
        if (!is_mapped(l->at, l->size, 1, 0) || (l->is_copy && !is_mapped(l->from, l->size, 1, 0)))
            return broken = ILLEGAL_ADDRESS;
        if (l->is_copy) memmove((void *)l->at, (void *)l->from, l->size);
        else memset((void *)l->at, l->value, l->size);
    }
    return OK;
}

static void push(launch next) { launches[num_launched++ % MANY] = next; }

static void free_if_unused(frame *f)
{
    if (!f->is_released || f->num_mapped) return;
    used_bytes -= f->size;
    close(f->fd);
    memset(f, 0, sizeof *f);
}

CUresult cuInit(unsigned int flags) { ENTER(0); is_initialised = 1; return leave(flags ? INVALID_VALUE : OK); }

CUresult cuGetErrorName(CUresult error, const char **name)
{
    *name = error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : error == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == NO_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : error == NO_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
          : error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? OK : INVALID_VALUE;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) { ENTER(0); *device = ordinal; return leave(ordinal ? NO_DEVICE : OK); }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{ ENTER(0); num_contexts++; *context = (CUcontext)(intptr_t)(device + 1); return leave(OK); }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{ ENTER(0); (void)device; REFUSE_IF(!num_contexts, NO_CONTEXT); num_contexts--; return leave(OK); }
CUresult cuCtxSetCurrent(CUcontext context) { ENTER(0); current = context; return leave(OK); }
CUresult cuCtxSynchronize(void) { ENTER(1); return leave(run_until(num_launched)); }

static int is_bad_prop(const CUmemAllocationProp *prop)
{
    return !prop || prop->type != 1 || prop->location.type != 1 || prop->location.id;
}

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop, int option)
{ ENTER(1); REFUSE_IF(is_bad_prop(prop) || option < 0 || option > 1, INVALID_VALUE); *bytes = GRANULE; return leave(OK); }

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags)
{
    ENTER(1);
    REFUSE_IF(!size || size % GRANULE || is_bad_prop(prop) || flags, INVALID_VALUE);
    REFUSE_IF(used_bytes + size > memory_bytes, NO_MEMORY);
    for (int i = 1; i < MANY; i++) {
        if (frames[i].fd) continue;
        int fd = memfd_create("fake-cuda", MFD_CLOEXEC);
        REFUSE_IF(fd < 0 || ftruncate(fd, size), NO_MEMORY);
        frames[i] = (frame){fd, size, 0, 0};
        used_bytes += size;
        *handle = i;
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    ENTER(1);
    REFUSE_IF(handle >= MANY || !frames[handle].fd || frames[handle].is_released, BAD_HANDLE);
    frames[handle].is_released = 1;
    free_if_unused(&frames[handle]);
    return leave(OK);
}

CUresult cuMemAddressReserve(CUdeviceptr *base, size_t size, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags)
{
    ENTER(1);
    REFUSE_IF(!size || size % GRANULE || alignment || wanted || flags, INVALID_VALUE);
    for (int i = 0; i < MANY; i++) {
        if (reservations[i].size) continue;
        void *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        REFUSE_IF(at == MAP_FAILED, NO_MEMORY);
        reservations[i] = (reservation){(CUdeviceptr)at, size};
        *base = (CUdeviceptr)at;
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuMemAddressFree(CUdeviceptr base, size_t size)
{
    ENTER(1);
    for (int i = 0; i < MANY; i++)
        REFUSE_IF(mappings[i].size && overlaps(base, size, mappings[i].at, mappings[i].size), INVALID_VALUE);
    for (int i = 0; i < MANY; i++) {
        if (reservations[i].at != base || reservations[i].size != size) continue;
        munmap((void *)base, size);
        reservations[i].size = 0;
        return leave(OK);
    }
    return leave(INVALID_VALUE);
}

CUresult cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags)
{
    ENTER(1);
    REFUSE_IF(handle >= MANY || !frames[handle].fd || frames[handle].is_released, BAD_HANDLE);
    REFUSE_IF(!size || size % GRANULE || offset || flags || size > frames[handle].size, INVALID_VALUE);
    int is_reserved = 0, free_slot = -1;
    for (int i = 0; i < MANY; i++) {
        reservation *r = &reservations[i];
        is_reserved |= r->size && at >= r->at && at + size <= r->at + r->size && (at - r->at) % GRANULE == 0;
        REFUSE_IF(mappings[i].size && overlaps(at, size, mappings[i].at, mappings[i].size), INVALID_VALUE);
        if (!mappings[i].size && free_slot < 0) free_slot = i;
    }
    REFUSE_IF(!is_reserved, INVALID_VALUE);
    REFUSE_IF(free_slot < 0, NO_MEMORY);
    if (mmap((void *)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, frames[handle].fd, 0) == MAP_FAILED)
        return leave(NO_MEMORY);
    mappings[free_slot] = (mapping){at, size, handle, 0};
    frames[handle].num_mapped++;
    return leave(OK);
}

CUresult cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count)
{
    ENTER(1);
    num_calls_of_access++;
    REFUSE_IF(count != 1 || access->location.type != 1 || access->location.id || access->flags != 3, INVALID_VALUE);
    REFUSE_IF(!size || !is_mapped(at, size, 0, 1), INVALID_VALUE);
    REFUSE_IF(mprotect((void *)at, size, PROT_READ | PROT_WRITE), NO_MEMORY);
    for (int i = 0; i < MANY; i++)
        if (mappings[i].size && overlaps(at, size, mappings[i].at, mappings[i].size)) mappings[i].has_access = 1;
    return leave(OK);
}

CUresult cuMemUnmap(CUdeviceptr at, size_t size)
{
    ENTER(1);
    REFUSE_IF(!size || !is_mapped(at, size, 0, 1), INVALID_VALUE);
    for (uint64_t i = num_run; i < num_launched; i++) {
        launch *l = &launches[i % MANY];
        if (overlaps(at, size, l->at, l->size) || (l->is_copy && overlaps(at, size, l->from, l->size)))
            return leave(broken = ILLEGAL_ADDRESS); /* pulled away from under a kernel */
    }
    for (int i = 0; i < MANY; i++) {
        mapping *m = &mappings[i];
        if (!m->size || !overlaps(at, size, m->at, m->size)) continue;
        frames[m->handle].num_mapped--;
        free_if_unused(&frames[m->handle]);
        m->size = 0;
    }
    mmap((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return leave(OK);
}

CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
    ENTER(1);
    REFUSE_IF(flags & ~7u, INVALID_VALUE);
    for (int i = 0; i < MANY; i++) {
        if (event_used[i]) continue;
        event_used[i] = 1;
        events[i].launched = 0;
        *event = &events[i];
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{ ENTER(1); REFUSE_IF(!event || stream, BAD_HANDLE); event->launched = num_launched; return leave(OK); }
CUresult cuEventSynchronize(CUevent event) { ENTER(1); REFUSE_IF(!event, BAD_HANDLE); return leave(run_until(event->launched)); }
CUresult cuEventDestroy_v2(CUevent event) { ENTER(1); REFUSE_IF(!event, BAD_HANDLE); event_used[event - events] = 0; return leave(OK); }

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    ENTER(1);
    REFUSE_IF(stream, BAD_HANDLE);
    push((launch){to, from, size, 0, 1});
    return leave(OK);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size)
{
    ENTER(1);
    REFUSE_IF(run_until(num_launched), broken);
    REFUSE_IF(!is_mapped(from, size, 1, 0), INVALID_VALUE);
    memcpy(to, (void *)from, size);
    return leave(OK);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size)
{
    ENTER(1);
    REFUSE_IF(run_until(num_launched), broken);
    REFUSE_IF(!is_mapped(to, size, 1, 0), INVALID_VALUE);
    memcpy((void *)to, from, size);
    return leave(OK);
}

/* --- what tests say to it ---------------------------------------------------------------------------------- */

/* A kernel that fills bytes, some time. */
void fake_launch_fill(CUdeviceptr at, size_t size, unsigned char value)
{ pthread_mutex_lock(&lock); push((launch){at, 0, size, value, 0}); pthread_mutex_unlock(&lock); }

/* Let call `name` fail with `code` after it was made `after` more times; 700 and above are for good. */
void fake_fail(const char *name, int after, int code)
{ strncpy(failing, name, sizeof failing - 1); failing_after = after; failing_code = code; }

void fake_set_memory(size_t bytes) { memory_bytes = bytes; }

/* What lives: frames, mappings, reservations, events, contexts; then launches that wait, and calls of set-access. */
void fake_count(int64_t *out)
{
    memset(out, 0, 7 * sizeof *out);
    for (int i = 0; i < MANY; i++) {
        out[0] += frames[i].fd != 0;
        out[1] += mappings[i].size != 0;
        out[2] += reservations[i].size != 0;
        out[3] += event_used[i];
    }
    out[4] = num_contexts;
    out[5] = num_launched - num_run;
    out[6] = num_calls_of_access;
}

/* A new machine: give back what a broken one held. */
void fake_reset(void)
{
    for (int i = 0; i < MANY; i++) {
        if (reservations[i].size) munmap((void *)reservations[i].at, reservations[i].size);
        if (frames[i].fd) close(frames[i].fd);
    }
    memset(mappings, 0, sizeof mappings);
    memset(reservations, 0, sizeof reservations);
    memset(frames, 0, sizeof frames);
    memset(event_used, 0, sizeof event_used);
    num_run = num_launched;
    broken = num_contexts = failing[0] = 0;
    used_bytes = 0;
    memory_bytes = (size_t)1 << 40;
}
