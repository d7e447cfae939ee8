/* A stand-in for the CUDA driver, without a device: frames lie in a memory file, address ranges are reserved by mmap,
 * and what was launched on a stream runs as late as it may: when somebody waits for it. Every rule of the virtual
 * memory calls is enforced; a page without access is PROT_NONE, so that touching it ends the process.
 *
 * It has no multiprocessors: who asks knows that torch must compute on the processor. Such computations are on no
 * stream, so the default stream runs at once, unless a test makes it lazy, too.
 *
 * FAKE_CUDA_CONTROL names a file. When it exists it holds "CALL AFTER CODE", an order as for `fake_fail`, and is
 * removed as it is read: so a test reaches a driver in another process. With ".start" behind its name it holds
 * "CALL AFTER CODE TIMES": an order for each of so many processes that come next, taken as they initialise.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"

enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 101, NO_CONTEXT = 201,
       BAD_HANDLE = 400, ILLEGAL_ADDRESS = 700, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713,
       MANY = 8192, FEW = 16, NAME_BYTES = 64 };
enum { FILL, WITHIN, OUT, IN, WAIT }; /* what a launch does */

typedef struct { CUdeviceptr at; size_t size; CUmemGenericAllocationHandle handle; int has_access; } mapping;
typedef struct { CUdeviceptr at; size_t size; } extent;
typedef struct { size_t size; int is_released, num_mapped; } frame; /* size 0: none */
typedef struct { int kind; CUdeviceptr to, from; size_t size; uint64_t value; CUstream other; } launch;
struct CUstream_st { int is_used; uint64_t num_launched, num_run; launch launches[MANY]; };
struct CUevent_st { int is_used; CUstream stream; uint64_t launched; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mapping mappings[MANY];
static extent reservations[MANY], registered[MANY];
static frame frames[MANY]; /* each at an offset of its own in a file with holes: a file for each would be too many */
static int memory_file = -1;
static const size_t MAX_FRAME = (size_t)1 << 28;
static struct CUstream_st streams[FEW]; /* the first one is the default stream */
static struct CUevent_st events[MANY];
static int is_initialised, num_contexts, broken, is_lazy;
static size_t memory_bytes = (size_t)128 << 20, used_bytes, granule = 65536;
static char failing[NAME_BYTES];
static int failing_after, failing_code;
static int64_t num_calls_of_access, num_unpinned;
static __thread CUcontext current;

static void look_for_orders(void)
{
    const char *path = getenv("FAKE_CUDA_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    if (fscanf(file, "%63s %d %d", failing, &failing_after, &failing_code) != 3) failing[0] = 0;
    fclose(file);
    unlink(path);
}

static void take_order_of_start(void)
{
    const char *control = getenv("FAKE_CUDA_CONTROL");
    char path[4096];
    int times = 0;
    if (!control || (size_t)snprintf(path, sizeof path, "%s.start", control) >= sizeof path) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (fscanf(file, "%63s %d %d %d", failing, &failing_after, &failing_code, &times) != 4) failing[0] = 0;
    fclose(file);
    if (times > 1 && (file = fopen(path, "w"))) {
        fprintf(file, "%s %d %d %d\n", failing, failing_after, failing_code, times - 1);
        fclose(file);
    } else {
        unlink(path);
    }
}

static int enter(const char *name, int needs_context)
{
    pthread_mutex_lock(&lock);
    if (!is_initialised && !strcmp(name, "cuInit")) take_order_of_start();
    look_for_orders();
    if (broken) return broken;
    if (!is_initialised && strcmp(name, "cuInit")) return NOT_INITIALIZED;
    if (needs_context && (!current || !num_contexts)) return NO_CONTEXT;
    if (!strcmp(name, failing) && failing_after-- == 0) {
        failing[0] = 0;
        while (failing_code < 0) pause(); /* an order to hang */
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

/* Is main memory pinned? 1: by one registration; 0: by none; -1: a part of it is not as the rest. */
static int is_pinned(CUdeviceptr at, size_t size)
{
    for (int i = 0; i < MANY; i++) {
        extent *e = &registered[i];
        if (!e->size || !overlaps(at, size, e->at, e->size)) continue;
        return at >= e->at && at + size <= e->at + e->size ? 1 : -1;
    }
    return 0;
}

static int run_until(CUstream stream, uint64_t end)
{
    while (stream->num_run < end) {
        launch *l = &stream->launches[stream->num_run++ % MANY];
        if (l->kind == WAIT) {
            if (run_until(l->other, l->value)) return broken;
            continue;
        }
        if ((l->kind != OUT && !is_mapped(l->to, l->size, 1, 0))
            || (l->kind != FILL && l->kind != IN && !is_mapped(l->from, l->size, 1, 0)))
            return broken = ILLEGAL_ADDRESS;
        if (l->kind == FILL) memset((void *)l->to, (int)l->value, l->size);
        else memmove((void *)l->to, (void *)l->from, l->size);
    }
    return broken;
}

static CUstream stream_of(CUstream stream) { return stream ? stream : &streams[0]; }

static int push(CUstream stream, launch next)
{
    stream = stream_of(stream);
    if (stream->num_launched - stream->num_run == MANY && run_until(stream, stream->num_run + 1)) return broken;
    stream->launches[stream->num_launched++ % MANY] = next;
    return stream == &streams[0] && !is_lazy ? run_until(stream, stream->num_launched) : OK;
}

static int run_all(void)
{
    for (int i = 0; i < FEW; i++)
        if (run_until(&streams[i], streams[i].num_launched)) return broken;
    return OK;
}

static void free_if_unused(frame *f)
{
    if (!f->is_released || f->num_mapped) return;
    used_bytes -= f->size;
    fallocate(memory_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (f - frames) * MAX_FRAME, f->size);
    memset(f, 0, sizeof *f);
    if (used_bytes) return;
    close(memory_file);
    memory_file = -1;
}

CUresult cuInit(unsigned int flags) { ENTER(0); is_initialised = 1; return leave(flags ? INVALID_VALUE : OK); }

CUresult cuGetErrorName(CUresult error, const char **name)
{
    *name = error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : error == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == NO_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : error == NO_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
          : error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : error == BAD_HANDLE ? "CUDA_ERROR_INVALID_HANDLE"
          : error == ALREADY_REGISTERED ? "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" : NULL;
    return *name ? OK : INVALID_VALUE;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) { ENTER(0); *device = ordinal; return leave(ordinal ? NO_DEVICE : OK); }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{ ENTER(0); num_contexts++; *context = (CUcontext)(intptr_t)(device + 1); return leave(OK); }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{ ENTER(0); (void)device; REFUSE_IF(!num_contexts, NO_CONTEXT); num_contexts--; return leave(OK); }
CUresult cuCtxSetCurrent(CUcontext context) { ENTER(0); current = context; return leave(OK); }
CUresult cuCtxSynchronize(void) { ENTER(1); return leave(run_all()); }

CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{ ENTER(0); snprintf(name, size, "stand-in for a CUDA driver, without a GPU"); return leave(device ? NO_DEVICE : OK); }
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{ ENTER(0); (void)attribute; *value = 0; return leave(device ? NO_DEVICE : OK); } /* no multiprocessors */
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{ ENTER(0); *bytes = memory_bytes; return leave(device ? NO_DEVICE : OK); }
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{ ENTER(1); *free_bytes = memory_bytes - used_bytes; *total_bytes = memory_bytes; return leave(OK); }

static int is_bad_prop(const CUmemAllocationProp *prop)
{
    return !prop || prop->type != 1 || prop->location.type != 1 || prop->location.id;
}

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop, int option)
{ ENTER(1); REFUSE_IF(is_bad_prop(prop) || option < 0 || option > 1, INVALID_VALUE); *bytes = granule; return leave(OK); }

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags)
{
    ENTER(1);
    REFUSE_IF(!size || size % granule || size > MAX_FRAME || is_bad_prop(prop) || flags, INVALID_VALUE);
    REFUSE_IF(used_bytes + size > memory_bytes, NO_MEMORY);
    if (memory_file < 0) {
        memory_file = memfd_create("fake-cuda", MFD_CLOEXEC);
        REFUSE_IF(memory_file < 0 || ftruncate(memory_file, MANY * MAX_FRAME), NO_MEMORY);
    }
    for (int i = 1; i < MANY; i++) {
        if (frames[i].size) continue;
        frames[i] = (frame){size, 0, 0};
        used_bytes += size;
        *handle = i;
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    ENTER(1);
    REFUSE_IF(handle >= MANY || !frames[handle].size || frames[handle].is_released, BAD_HANDLE);
    frames[handle].is_released = 1;
    free_if_unused(&frames[handle]);
    return leave(OK);
}

CUresult cuMemAddressReserve(CUdeviceptr *base, size_t size, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags)
{
    ENTER(1);
    REFUSE_IF(!size || size % granule || alignment || wanted || flags, INVALID_VALUE);
    for (int i = 0; i < MANY; i++) {
        if (reservations[i].size) continue;
        void *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        REFUSE_IF(at == MAP_FAILED, NO_MEMORY);
        reservations[i] = (extent){(CUdeviceptr)at, size};
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
    REFUSE_IF(handle >= MANY || !frames[handle].size || frames[handle].is_released, BAD_HANDLE);
    REFUSE_IF(!size || size % granule || offset || flags || size > frames[handle].size, INVALID_VALUE);
    int is_reserved = 0, free_slot = -1;
    for (int i = 0; i < MANY; i++) {
        extent *r = &reservations[i];
        is_reserved |= r->size && at >= r->at && at + size <= r->at + r->size && (at - r->at) % granule == 0;
        REFUSE_IF(mappings[i].size && overlaps(at, size, mappings[i].at, mappings[i].size), INVALID_VALUE);
        if (!mappings[i].size && free_slot < 0) free_slot = i;
    }
    REFUSE_IF(!is_reserved, INVALID_VALUE);
    REFUSE_IF(free_slot < 0, NO_MEMORY);
    if (mmap((void *)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, memory_file, handle * MAX_FRAME) == MAP_FAILED)
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
    for (int s = 0; s < FEW; s++)
        for (uint64_t i = streams[s].num_run; i < streams[s].num_launched; i++) {
            launch *l = &streams[s].launches[i % MANY];
            if (l->kind != WAIT && (overlaps(at, size, l->to, l->size) || overlaps(at, size, l->from, l->size)))
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
        if (events[i].is_used) continue;
        events[i] = (struct CUevent_st){1, &streams[0], 0};
        *event = &events[i];
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    ENTER(1);
    REFUSE_IF(!event || !event->is_used, BAD_HANDLE);
    event->stream = stream_of(stream);
    event->launched = event->stream->num_launched;
    return leave(OK);
}

CUresult cuEventSynchronize(CUevent event)
{ ENTER(1); REFUSE_IF(!event || !event->is_used, BAD_HANDLE); return leave(run_until(event->stream, event->launched)); }
CUresult cuEventDestroy_v2(CUevent event)
{ ENTER(1); REFUSE_IF(!event || !event->is_used, BAD_HANDLE); event->is_used = 0; return leave(OK); }

CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
    ENTER(1);
    REFUSE_IF(flags != 1, INVALID_VALUE); /* the default stream must not wait for it */
    for (int i = 1; i < FEW; i++) {
        if (streams[i].is_used) continue;
        streams[i].is_used = 1;
        *stream = &streams[i];
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
    ENTER(1);
    REFUSE_IF(!event || !event->is_used || flags, INVALID_VALUE);
    return leave(push(stream, (launch){WAIT, 0, 0, 0, event->launched, event->stream}));
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
    ENTER(1);
    REFUSE_IF(!stream || !stream->is_used, BAD_HANDLE);
    stream->is_used = 0;
    return leave(run_until(stream, stream->num_launched));
}

CUresult cuMemHostRegister_v2(void *at, size_t size, unsigned int flags)
{
    ENTER(1);
    REFUSE_IF(!size || flags || (CUdeviceptr)at % 4096, INVALID_VALUE);
    REFUSE_IF(is_pinned((CUdeviceptr)at, size), ALREADY_REGISTERED);
    for (int i = 0; i < MANY; i++) {
        if (registered[i].size) continue;
        registered[i] = (extent){(CUdeviceptr)at, size};
        return leave(OK);
    }
    return leave(NO_MEMORY);
}

CUresult cuMemHostUnregister(void *at)
{
    ENTER(1);
    for (int i = 0; i < MANY; i++) {
        if (!registered[i].size || registered[i].at != (CUdeviceptr)at) continue;
        registered[i].size = 0;
        return leave(OK);
    }
    return leave(NOT_REGISTERED);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    ENTER(1);
    return leave(push(stream, (launch){WITHIN, to, from, size, 0, NULL}));
}

/* Between the device and main memory, all of it pinned, or nothing: then the call waits, as the real one may. */
static int push_copy(launch copy, CUdeviceptr in_memory, CUstream stream)
{
    int pinned = is_pinned(in_memory, copy.size);
    num_unpinned += !pinned;
    if (pinned < 0 || !stream) return INVALID_VALUE;
    return push(stream, copy) || (!pinned && run_until(stream, stream->num_launched)) ? broken : OK;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream)
{ ENTER(1); return leave(push_copy((launch){OUT, (CUdeviceptr)to, from, size, 0, NULL}, (CUdeviceptr)to, stream)); }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream)
{ ENTER(1); return leave(push_copy((launch){IN, to, (CUdeviceptr)from, size, 0, NULL}, (CUdeviceptr)from, stream)); }

/* --- what tests say to it ---------------------------------------------------------------------------------- */

/* A kernel that fills bytes, some time. */
void fake_launch_fill(CUdeviceptr at, size_t size, unsigned char value)
{ pthread_mutex_lock(&lock); push(NULL, (launch){FILL, at, 0, size, value, NULL}); pthread_mutex_unlock(&lock); }

/* Let call `name` fail with `code` after it was made `after` more times; 700 and above are for good. */
void fake_fail(const char *name, int after, int code)
{ strncpy(failing, name, sizeof failing - 1); failing_after = after; failing_code = code; }

void fake_set_memory(size_t bytes) { memory_bytes = bytes; }
void fake_set_lazy(int lazy) { is_lazy = lazy; }
void fake_set_granule(size_t bytes) { granule = bytes; }

/* What lives: frames, mappings, reservations, events, contexts, streams, pinned extents; then launches that wait, calls
 * of set-access, and copies from or to memory that was not pinned. */
void fake_count(int64_t *out)
{
    pthread_mutex_lock(&lock);
    memset(out, 0, 10 * sizeof *out);
    for (int i = 0; i < MANY; i++) {
        out[0] += frames[i].size != 0;
        out[1] += mappings[i].size != 0;
        out[2] += reservations[i].size != 0;
        out[3] += events[i].is_used;
        out[6] += registered[i].size != 0;
    }
    out[4] = num_contexts;
    for (int i = 0; i < FEW; i++) {
        out[5] += streams[i].is_used;
        out[7] += streams[i].num_launched - streams[i].num_run;
    }
    out[8] = num_calls_of_access;
    out[9] = num_unpinned;
    pthread_mutex_unlock(&lock);
}

/* A new machine: give back what a broken one held. */
void fake_reset(void)
{
    for (int i = 0; i < MANY; i++)
        if (reservations[i].size) munmap((void *)reservations[i].at, reservations[i].size);
    if (memory_file >= 0) close(memory_file);
    memory_file = -1;
    memset(mappings, 0, sizeof mappings);
    memset(reservations, 0, sizeof reservations);
    memset(registered, 0, sizeof registered);
    memset(frames, 0, sizeof frames);
    memset(events, 0, sizeof events);
    for (int i = 0; i < FEW; i++) streams[i].is_used = 0, streams[i].num_run = streams[i].num_launched;
    broken = num_contexts = failing[0] = is_lazy = 0;
    used_bytes = 0;
    num_unpinned = 0;
    memory_bytes = (size_t)128 << 20;
    granule = 65536;
}
