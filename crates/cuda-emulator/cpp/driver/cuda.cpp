// Stands in for NVIDIA's driver, libcuda.so, without a GPU: code that launches kernels runs
// unchanged on it, and the kernels are executed by a library that `compile` makes. It is a net, not a device: whatever the driver
// leaves open goes the least pleasant way here, and what the driver forbids fails as it does there, with a complaint
// that a test can ask for even where the code was thrown away.
//
//  - What is queued is executed when the host waits for it, not before; of other streams anything may be first, or
//    nothing. Copies to the device take their bytes at the call (pageable memory is staged); copies to the host land
//    when they are executed. Memory is there from its allocation's execution to its free's: see memory.cpp.
//  - A thread needs a context. Handles are never given twice, so that stale ones are known. An error that a kernel
//    causes stays with the context, and everything after it fails with it.
//  - Launches obey the limits of blocks, grids and shared memory of the architecture; beyond 48 KiB the function must
//    have been told. The parameters' size is what the kernel itself says.
//  - While a stream is captured nothing may wait for it, nor for its context from whatever thread (the driver breaks
//    the capture then in every mode), and the capturing thread may neither allocate, free, load nor copy. Captured
//    launches hold their parameters. Allocations that would become nodes of a graph are refused, which the driver
//    would not do: such an allocation is a mistake more often than a wish.
//  - A pool whose release threshold is below what it holds gives memory back whenever the host waits ("released").
//  - `stand_in_fail` makes a call fail; `stand_in_left` says what was never freed.
//
// What it cannot show: speed, real addresses' reuse, weak memory order, images that a driver does not take, what
// cuBLASLt does inside, anything that NVIDIA's driver does and its documentation does not say.
#include "state.h"

#include <time.h>

using namespace driver;

namespace {

bool prefix(const void *image, const char *text) {
  return !strncmp(static_cast<const char *>(image), text, strlen(text));
}

double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

} // namespace

// The driver's functions, as many as were needed so far. Another one is not found where this library is loaded by
// name (cudarc reports which); add it here then, with its rules by NVIDIA's documentation.

SHARED int cuInit(unsigned flags) {
  Lock hold(lock);
  if (int code = ask_fault("cuInit")) return code;
  if (flags) return refuse(INVALID_VALUE, "cuInit with flags");
  if (!kernels.launch) {
    hold.unlock();
    if (stand_in_kernels(getenv("STAND_IN_KERNELS")))
      return fprintf(stderr, "stand-in driver: no kernels\n"), 999;
    hold.lock();
  }
  initialised = true;
  return SUCCESS;
}

SHARED int cuDriverGetVersion(int *version) {
  Lock hold(lock);
  if (int code = ask_fault("cuDriverGetVersion")) return code;
  *version = 13000;
  return SUCCESS;
}

SHARED int cuGetErrorString(int code, const char **text) {
  static const std::map<int, const char *> texts = {
      {SUCCESS, "no error"},
      {INVALID_VALUE, "invalid argument"},
      {INVALID_CLUSTER_SIZE, "cluster misconfiguration"},
      {OUT_OF_MEMORY, "out of memory"},
      {NOT_INITIALIZED, "initialization error"},
      {100, "no CUDA-capable device is detected"},
      {INVALID_DEVICE, "invalid device ordinal"},
      {INVALID_IMAGE, "device kernel image is invalid"},
      {INVALID_CONTEXT, "invalid device context"},
      {209, "no kernel image is available for execution on the device"},
      {INVALID_HANDLE, "invalid resource handle"},
      {NOT_FOUND, "named symbol not found"},
      {NOT_READY, "device not ready"},
      {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
      {701, "too many resources requested for launch"},
      {CONTEXT_IS_DESTROYED, "context is destroyed"},
      {LAUNCH_FAILED, "unspecified launch failure"},
      {NOT_SUPPORTED, "operation not supported"},
      {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
      {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
      {CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"},
      {CAPTURE_UNJOINED, "capturing stream has unjoined work"},
      {CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"},
      {CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"},
      {CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"},
      {999, "unknown error"},
  };
  auto found = texts.find(code);
  *text = found == texts.end() ? nullptr : found->second;
  return found == texts.end() ? INVALID_VALUE : SUCCESS;
}

SHARED int cuDeviceGetCount(int *count) {
  ENTER("cuDeviceGetCount");
  *count = DEVICES;
  return SUCCESS;
}

SHARED int cuDeviceGet(int *device, int ordinal) {
  ENTER("cuDeviceGet");
  if (ordinal < 0 || ordinal >= DEVICES) return refuse(INVALID_DEVICE, "cuDeviceGet");
  *device = ordinal;
  return SUCCESS;
}

SHARED int cuDeviceGetName(char *name, int length, int device) {
  ENTER("cuDeviceGetName");
  snprintf(name, static_cast<size_t>(length), "stand-in for a GPU, sm_%d%d (nothing here is a GPU)",
           properties[device].major, properties[device].minor);
  return SUCCESS;
}

SHARED int cuDeviceGetAttribute(int *value, int attribute, int device) {
  ENTER("cuDeviceGetAttribute");
  if (device < 0 || device >= DEVICES) return refuse(INVALID_DEVICE, "cuDeviceGetAttribute");
  switch (attribute) {
  case 16: *value = properties[device].processors; break;
  case 38: *value = 1 << 20; break; // L2
  case 75: *value = properties[device].major; break;
  case 76: *value = properties[device].minor; break;
  case 115: *value = 1; break; // pools
  default: return refuse(INVALID_VALUE, "cuDeviceGetAttribute of " + std::to_string(attribute));
  }
  return SUCCESS;
}

SHARED int cuDevicePrimaryCtxRetain(void **out, int device) {
  ENTER("cuDevicePrimaryCtxRetain");
  if (device < 0 || device >= DEVICES) return refuse(INVALID_DEVICE, "cuDevicePrimaryCtxRetain");
  // Another order in every context, and the same in every run.
  static uint64_t opened[DEVICES];
  if (!contexts[device])
    contexts[device] = new Context{fresh_handle(), device, 0, 0, uint64_t(device) << 32 | opened[device]++};
  contexts[device]->retained++;
  *out = pointer(contexts[device]->handle);
  return SUCCESS;
}

SHARED int cuDevicePrimaryCtxRelease_v2(int device) {
  ENTER("cuDevicePrimaryCtxRelease_v2");
  Context *context = device >= 0 && device < DEVICES ? contexts[device] : nullptr;
  if (!context) return refuse(INVALID_CONTEXT, "a context is released that is not retained");
  if (!--context->retained) destroy(hold, context);
  return SUCCESS;
}

SHARED int cuCtxGetCurrent(void **out) {
  ENTER("cuCtxGetCurrent");
  *out = reinterpret_cast<void *>(current);
  return SUCCESS;
}

SHARED int cuCtxSetCurrent(void *handle) {
  ENTER("cuCtxSetCurrent");
  Context *context = context_of(number(handle));
  if (handle && !context) return refuse(INVALID_CONTEXT, "cuCtxSetCurrent of a context that does not exist");
  current = number(handle);
  if (context) last_device = context->device;
  return SUCCESS;
}

SHARED int cuCtxSynchronize() {
  ENTER_CONTEXT("cuCtxSynchronize");
  if (int code = prohibited_in(context, "cuCtxSynchronize")) return code;
  for (auto &stream : streams_of(context)) drain(hold, stream, stream->queued);
  waited(context);
  return context->error;
}

// Images are what nvcc makes, or for builds without it `stand-in image of FILE`, which has that file's kernels.
SHARED int cuModuleLoadData(void **out, const void *image) {
  ENTER_CONTEXT("cuModuleLoadData");
  if (int code = prohibited("cuModuleLoadData")) return code;
  const char *placeholder = "stand-in image of ";
  Module module{context, ""};
  if (prefix(image, placeholder)) module.file = static_cast<const char *>(image) + strlen(placeholder);
  else if (!prefix(image, "\x50\xed\x55\xba")) return refuse(INVALID_IMAGE, "what is loaded is not a fatbin");
  const uint64_t handle = fresh_handle();
  modules[handle] = module;
  *out = pointer(handle);
  return SUCCESS;
}

SHARED int cuModuleUnload(void *handle) {
  ENTER_CONTEXT("cuModuleUnload");
  if (int code = prohibited("cuModuleUnload")) return code;
  if (!modules.erase(number(handle))) return refuse(INVALID_HANDLE, "cuModuleUnload of no module");
  for (auto it = functions.begin(); it != functions.end();)
    it = it->second.module == number(handle) ? functions.erase(it) : std::next(it);
  return SUCCESS;
}

SHARED int cuModuleGetFunction(void **out, void *module, const char *name) {
  ENTER_CONTEXT("cuModuleGetFunction");
  Module *const found = find(modules, module);
  if (!found || found->context != context) return refuse(INVALID_HANDLE, "cuModuleGetFunction of no module");
  Function function{context, number(module), name, 0, 48 << 10, 0};
  const char *file = "";
  // A module may lack it: the caller asks one after the other.
  if (!kernels.find(name, &function.params, &function.threads, &file)) return NOT_FOUND;
  if (!found->file.empty() && found->file != file) return NOT_FOUND;
  // Modules are loaded lazily: the first look for a kernel loads its code.
  if (int code = prohibited("the first use of a kernel")) return code;
  const uint64_t handle = fresh_handle();
  functions[handle] = function;
  *out = pointer(handle);
  return SUCCESS;
}

SHARED int cuFuncSetAttribute(void *handle, int attribute, int value) {
  ENTER_CONTEXT("cuFuncSetAttribute");
  Function *const function = find(functions, handle);
  if (!function || function->context != context) return refuse(INVALID_HANDLE, "cuFuncSetAttribute of no function");
  // The preferred carve-out: percent, or -1 for the driver's choice.
  if (attribute == 9) {
    if (value < -1 || value > 100)
      return refuse(INVALID_VALUE, function->name + " asks for a carve-out of " + std::to_string(value) + " percent");
    counts[context->device]["carve-outs"]++;
    return SUCCESS;
  }
  if (attribute != 8) return refuse(INVALID_VALUE, "cuFuncSetAttribute of another attribute");
  const int sm = properties[context->device].major * 10 + properties[context->device].minor;
  // CUDA C++ programming guide, technical specifications per compute capability.
  const int most = sm == 80 || sm == 87 ? 163 : sm == 86 || sm == 89 || sm == 120 || sm == 121 ? 99 : 227;
  if (value < 0 || value > most << 10)
    return refuse(INVALID_VALUE, function->name + " asks for " + std::to_string(value) + " bytes of shared memory, more than sm_" +
                                     std::to_string(sm) + " gives a block");
  function->allowed = static_cast<size_t>(value);
  return SUCCESS;
}

namespace {

// What both calls that launch do once they hold the lock.
int launch(Context *const context, void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
           unsigned bz, unsigned shared, void *stream_handle, void **params, void **extra) {
  Function *const function = find(functions, handle);
  if (!function || function->context != context) return refuse(INVALID_HANDLE, "a launch of no function");
  shared_ptr<Stream> stream;
  if (int code = stream_for("a launch", stream_handle, context, &stream)) return code;
  const string &name = function->name;
  auto wrong = [&](const string &what) { return refuse(INVALID_VALUE, name + ": " + what); };
  if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535)
    return wrong("a grid of " + std::to_string(gx) + " x " + std::to_string(gy) + " x " + std::to_string(gz));
  const uint64_t threads = uint64_t(bx) * by * bz;
  if (!threads || threads > 1024 || bz > 64) return wrong("a block of " + std::to_string(threads) + " threads");
  if (threads > function->threads)
    return wrong("a block of " + std::to_string(threads) + " threads, where its launch bound is " + std::to_string(function->threads));
  if (by != 1 || bz != 1) return wrong("blocks of one dimension are all that the CPU executes");
  if (shared > function->allowed)
    return wrong(std::to_string(shared) + " bytes of shared memory, where " + std::to_string(function->allowed) + " are allowed");
  if (extra || !params || !params[0]) return wrong("no parameters");
  if (function->params > 4096) return wrong("more than 4096 bytes of parameters");
  // Copied now; the kernel reads them where they lie, aligned.
  auto copied = std::make_shared<std::vector<uint64_t>>((function->params + 7) / 8);
  memcpy(copied->data(), params[0], function->params);
  const size_t bytes = function->params;
  const int device = context->device;
  const uint64_t seed = roll(context);
  auto run = [=]() {
    const unsigned grid[3] = {gx, gy, gz};
    char report[512] = "";
    int failed = 0;
    const int code = touched(device, name, [&] {
      failed = kernels.launch(name.c_str(), copied->data(), bytes, grid, bx, shared, 2, seed & 1, seed, report, sizeof report);
    });
    Lock hold(lock);
    counts[device]["launches"]++;
    if (code) return code;
    if (failed) complain_of(device, name + ": " + report);
    return failed ? int(LAUNCH_FAILED) : int(SUCCESS);
  };
  return submit(stream, "a launch", run);
}

} // namespace

SHARED int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream_handle, void **params, void **extra) {
  ENTER_CONTEXT("cuLaunchKernel");
  return launch(context, handle, gx, gy, gz, bx, by, bz, shared, stream_handle, params, extra);
}

// As in cuda.h.
struct LaunchAttribute {
  int id;
  char pad[4];
  union {
    char bytes[64];
    unsigned cluster[3];
    int allowed;
  } value;
};

struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void *stream;
  const LaunchAttribute *attributes;
  unsigned count;
};

// Blocks of a cluster are executed like others, and a dependent launch waits for the whole kernel before it: both are
// among what the driver may do.
SHARED int cuLaunchKernelEx(const LaunchConfig *config, void *handle, void **params, void **extra) {
  ENTER_CONTEXT("cuLaunchKernelEx");
  const int sm = properties[context->device].major * 10 + properties[context->device].minor;
  const auto &grid = config->grid;
  auto text = [](const unsigned *sides) {
    return std::to_string(sides[0]) + " x " + std::to_string(sides[1]) + " x " + std::to_string(sides[2]);
  };
  for (unsigned i = 0; i < config->count; i++) {
    const LaunchAttribute &attribute = config->attributes[i];
    const bool clusters = attribute.id == 4;
    if (!clusters && attribute.id != 6) return refuse(INVALID_VALUE, "cuLaunchKernelEx with another attribute");
    if (sm < 90)
      return refuse(INVALID_VALUE, string(clusters ? "clusters" : "dependent launches") + ", which sm_" + std::to_string(sm) +
                                       " does not have");
    if (clusters) {
      const unsigned *const cluster = attribute.value.cluster;
      const uint64_t blocks = uint64_t(cluster[0]) * cluster[1] * cluster[2];
      if (!blocks || blocks > 8)
        return refuse(INVALID_CLUSTER_SIZE, "a cluster of " + std::to_string(blocks) + " blocks");
      for (int side = 0; side < 3; side++)
        if (grid[side] % cluster[side])
          return refuse(INVALID_VALUE, "a grid of " + text(grid) + " in clusters of " + text(cluster));
      counts[context->device]["clusters"]++;
    } else if (attribute.value.allowed) {
      counts[context->device]["dependent launches"]++;
    }
  }
  const auto &block = config->block;
  return launch(context, handle, grid[0], grid[1], grid[2], block[0], block[1], block[2], config->shared, config->stream,
                params, extra);
}

SHARED int cuStreamCreate(void **out, unsigned flags) {
  ENTER_CONTEXT("cuStreamCreate");
  if (flags > 1) return refuse(INVALID_VALUE, "cuStreamCreate");
  const uint64_t handle = fresh_handle();
  streams[handle] = std::make_shared<Stream>();
  streams[handle]->context = context;
  streams[handle]->flags = flags;
  *out = pointer(handle);
  return SUCCESS;
}

// Returns at once; what is queued is done all the same.
SHARED int cuStreamDestroy_v2(void *handle) {
  ENTER("cuStreamDestroy_v2");
  auto found = streams.find(number(handle));
  if (found == streams.end()) return refuse(INVALID_HANDLE, "cuStreamDestroy of no stream");
  if (auto capture = found->second->capture) {
    captures.erase(capture);
    complain_of(found->second->context->device, "a stream is destroyed while it is captured");
  }
  orphans.push_back(found->second);
  streams.erase(found);
  return SUCCESS;
}

SHARED int cuStreamSynchronize(void *handle) {
  ENTER_CONTEXT("cuStreamSynchronize");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuStreamSynchronize", handle, context, &stream)) return code;
  if (stream->capture) return breaks(stream->capture, "cuStreamSynchronize of that stream");
  if (int code = prohibited("cuStreamSynchronize")) return code;
  disorder(hold, context);
  drain(hold, stream, stream->queued);
  waited(context);
  counts[context->device]["waits"]++;
  return context->error;
}

SHARED int cuStreamQuery(void *handle) {
  ENTER_CONTEXT("cuStreamQuery");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuStreamQuery", handle, context, &stream)) return code;
  if (stream->capture) return breaks(stream->capture, "cuStreamQuery of that stream");
  disorder(hold, context);
  return stream->done == stream->queued ? SUCCESS : NOT_READY;
}

SHARED int cuStreamWaitEvent(void *handle, void *event_handle, unsigned) {
  ENTER_CONTEXT("cuStreamWaitEvent");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuStreamWaitEvent", handle, context, &stream)) return code;
  Event *const event = find(events, event_handle);
  if (!event) return refuse(INVALID_HANDLE, "cuStreamWaitEvent for no event");
  if (auto capture = event->capture) {
    if (stream->capture && stream->capture != capture) return breaks(capture, "a wait for another capture's event");
    if (!stream->capture) {
      stream->capture = capture;
      capture->others[stream.get()] = 0;
    }
    if (stream.get() == capture->origin) {
      for (auto &[other, nodes] : capture->others)
        if (other == event->stream.get() && event->node >= nodes) nodes = 0;
    }
    return SUCCESS;
  }
  if (stream->capture) return breaks(stream->capture, "a wait for an event from outside");
  if (event->stream) {
    stream->work.push_back({"a wait", nullptr, event->stream, event->at});
    stream->queued++;
  }
  return SUCCESS;
}

SHARED int cuStreamBeginCapture_v2(void *handle, int mode) {
  ENTER_CONTEXT("cuStreamBeginCapture_v2");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuStreamBeginCapture", handle, context, &stream)) return code;
  if (mode < 0 || mode > 2) return refuse(INVALID_VALUE, "cuStreamBeginCapture");
  if (stream->capture) return refuse(900 + 2, "a stream is captured twice");
  auto capture = std::make_shared<Capture>();
  capture->origin = stream.get();
  capture->mode = mode;
  capture->thread = this_thread();
  stream->capture = capture;
  captures.insert(capture);
  return SUCCESS;
}

SHARED int cuStreamIsCapturing(void *handle, int *status) {
  ENTER_CONTEXT("cuStreamIsCapturing");
  auto *found = find(streams, handle);
  if (!found) return refuse(INVALID_HANDLE, "cuStreamIsCapturing of no stream");
  *status = !(*found)->capture ? 0 : (*found)->capture->broken.empty() ? 1 : 2;
  return SUCCESS;
}

SHARED int cuStreamEndCapture(void *handle, void **out) {
  Lock hold(lock);
  const int planned_code = ask_fault("cuStreamEndCapture");
  *out = nullptr;
  Context *const context = context_of(current);
  if (!context) return refuse(INVALID_CONTEXT, "cuStreamEndCapture without a context");
  auto *found = find(streams, handle);
  if (!found) return refuse(INVALID_HANDLE, "cuStreamEndCapture of no stream");
  const auto capture = (*found)->capture;
  if (!capture) return refuse(INVALID_VALUE, "cuStreamEndCapture of a stream that is not captured");
  if (capture->origin != found->get()) return refuse(CAPTURE_UNMATCHED, "a capture is ended on another stream");
  if (capture->mode != 2 && capture->thread != this_thread())
    return refuse(CAPTURE_WRONG_THREAD, "a capture is ended by another thread");
  captures.erase(capture);
  for (auto &[_, stream] : streams)
    if (stream->capture == capture) stream->capture = nullptr;
  for (auto &[_, event] : events)
    if (event.capture == capture) event.capture = nullptr;
  if (planned_code) return planned_code;
  if (!capture->broken.empty()) return CAPTURE_INVALIDATED;
  for (auto &[_, nodes] : capture->others)
    if (nodes) return refuse(CAPTURE_UNJOINED, "a capture is ended before another stream has joined it");
  const uint64_t graph = fresh_handle();
  graphs[graph] = {context, std::make_shared<Nodes>(std::move(capture->nodes))};
  counts[context->device]["captures"]++;
  *out = reinterpret_cast<void *>(graph);
  return SUCCESS;
}

SHARED int cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
  ENTER_CONTEXT("cuGraphInstantiateWithFlags");
  Graph *const found = find(graphs, graph);
  if (!found) return refuse(INVALID_VALUE, "cuGraphInstantiate of no graph");
  if (flags) return refuse(INVALID_VALUE, "cuGraphInstantiate with flags");
  const uint64_t handle = fresh_handle();
  executables[handle] = {context, std::make_shared<Nodes>(*found->nodes)};
  *out = pointer(handle);
  return SUCCESS;
}

SHARED int cuGraphLaunch(void *graph, void *handle) {
  ENTER_CONTEXT("cuGraphLaunch");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuGraphLaunch", handle, context, &stream)) return code;
  Graph *const found = find(executables, graph);
  if (!found) return refuse(INVALID_VALUE, "cuGraphLaunch of no executable graph");
  if (stream->capture) return breaks(stream->capture, "cuGraphLaunch");
  counts[context->device]["replays"]++;
  // In flight it is kept, even if it is destroyed.
  auto nodes = found->nodes;
  return submit(stream, "a replay", [nodes] {
    for (auto &[_, run] : *nodes)
      if (int code = run()) return code;
    return int(SUCCESS);
  });
}

SHARED int cuGraphExecDestroy(void *graph) {
  ENTER("cuGraphExecDestroy");
  return executables.erase(number(graph)) ? SUCCESS : refuse(INVALID_VALUE, "cuGraphExecDestroy of no graph");
}

SHARED int cuGraphDestroy(void *graph) {
  ENTER("cuGraphDestroy");
  return graphs.erase(number(graph)) ? SUCCESS : refuse(INVALID_VALUE, "cuGraphDestroy of no graph");
}

SHARED int cuEventCreate(void **out, unsigned flags) {
  ENTER_CONTEXT("cuEventCreate");
  const uint64_t handle = fresh_handle();
  events[handle].context = context;
  events[handle].flags = flags;
  *out = pointer(handle);
  return SUCCESS;
}

SHARED int cuEventDestroy_v2(void *handle) {
  ENTER("cuEventDestroy_v2");
  return events.erase(number(handle)) ? SUCCESS : refuse(INVALID_HANDLE, "cuEventDestroy of no event");
}

SHARED int cuEventRecord(void *handle, void *stream_handle) {
  ENTER_CONTEXT("cuEventRecord");
  Event *const event = find(events, handle);
  if (!event || event->context != context) return refuse(INVALID_HANDLE, "cuEventRecord of no event");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuEventRecord", stream_handle, context, &stream)) return code;
  event->stream = stream;
  event->capture = stream->capture;
  if (stream->capture) {
    event->node = stream->capture->nodes.size();
    return SUCCESS;
  }
  auto time = event->time = std::make_shared<double>(0.0);
  put(stream, "an event", [time] { return *time = seconds(), int(SUCCESS); });
  event->at = stream->queued;
  return SUCCESS;
}

SHARED int cuEventSynchronize(void *handle) {
  ENTER_CONTEXT("cuEventSynchronize");
  Event *const event = find(events, handle);
  if (!event) return refuse(INVALID_HANDLE, "cuEventSynchronize of no event");
  if (event->capture) {
    event->capture->broken = "cuEventSynchronize";
    return refuse(CAPTURED_EVENT, "cuEventSynchronize of an event of a capture");
  }
  if (int code = prohibited("cuEventSynchronize")) return code;
  const auto stream = event->stream;
  const uint64_t at = event->at;
  disorder(hold, context);
  if (stream) drain(hold, stream, at);
  waited(context);
  return context->error;
}

SHARED int cuEventQuery(void *handle) {
  ENTER_CONTEXT("cuEventQuery");
  Event *const event = find(events, handle);
  if (!event) return refuse(INVALID_HANDLE, "cuEventQuery of no event");
  if (event->capture) {
    event->capture->broken = "cuEventQuery";
    return refuse(CAPTURED_EVENT, "cuEventQuery of an event of a capture");
  }
  return !event->stream || event->stream->done >= event->at ? SUCCESS : NOT_READY;
}

SHARED int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
  ENTER_CONTEXT("cuEventElapsedTime");
  Event *const both[2] = {find(events, start), find(events, end)};
  for (Event *event : both) {
    if (!event || !event->stream || event->flags & 2) return refuse(INVALID_HANDLE, "cuEventElapsedTime of no recorded event");
    if (event->stream->done < event->at) return NOT_READY;
  }
  *milliseconds = static_cast<float>((*both[1]->time - *both[0]->time) * 1e3);
  return SUCCESS;
}

namespace {

shared_ptr<Pool> default_pool(int device) {
  for (auto &[_, pool] : pools)
    if (!pool->context && pool->device == device) return pool;
  auto pool = std::make_shared<Pool>(Pool{nullptr, device});
  return pools[fresh_handle()] = pool;
}

int allocate(Context *context, const shared_ptr<Pool> &pool, uint64_t *out, size_t size, const shared_ptr<Stream> &stream) {
  if (!size) return refuse(INVALID_VALUE, "an allocation of nothing");
  if (stream->capture) return breaks(stream->capture, "an allocation");
  size_t used = 0;
  for (auto &[_, pool] : pools)
    if (pool->device == context->device) used += pool->used;
  const size_t all = properties[context->device].memory;
  // No complaint: to be full is not a mistake.
  if (size > all || used > all - size) return OUT_OF_MEMORY;
  const uint64_t address = memory::reserve(context->device, size);
  if (!address) return OUT_OF_MEMORY;
  pieces[address] = pool;
  pool->used += size;
  if (pool->held < pool->used) pool->held = pool->used;
  *out = address;
  return submit(stream, "an allocation", [address] { return memory::appear(address), int(SUCCESS); });
}

} // namespace

SHARED int cuMemAllocAsync(uint64_t *out, size_t size, void *handle) {
  ENTER_CONTEXT("cuMemAllocAsync");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemAllocAsync", handle, context, &stream)) return code;
  return allocate(context, default_pool(context->device), out, size, stream);
}

SHARED int cuMemAllocFromPoolAsync(uint64_t *out, size_t size, void *pool, void *handle) {
  ENTER_CONTEXT("cuMemAllocFromPoolAsync");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemAllocFromPoolAsync", handle, context, &stream)) return code;
  auto *found = find(pools, pool);
  if (!found || (*found)->device != context->device) return refuse(INVALID_VALUE, "an allocation from no pool");
  return allocate(context, *found, out, size, stream);
}

SHARED int cuMemFreeAsync(uint64_t address, void *handle) {
  ENTER_CONTEXT("cuMemFreeAsync");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemFreeAsync", handle, context, &stream)) return code;
  if (stream->capture) return breaks(stream->capture, "a free");
  if (!memory::give_up(context->device, address)) return refuse(INVALID_VALUE, "a free of what is not, or not any more, allocated");
  auto from = pieces.find(address);
  from->second->used -= memory::size_of(address);
  pieces.erase(from);
  const int device = context->device;
  return submit(stream, "a free", [=] {
    if (!memory::vanish(address)) {
      Lock hold(lock);
      complain_of(device, "something wrote beside a piece that is freed");
    }
    return int(SUCCESS);
  });
}

SHARED int cuMemPoolCreate(void **out, const void *properties_of_pool) {
  ENTER_CONTEXT("cuMemPoolCreate");
  // CUmemPoolProps: allocation type, handle types, location's type and id, then what must be zero for us.
  struct Wanted {
    int type, handles, location, device;
    void *security;
    size_t most;
    unsigned short usage;
    unsigned char reserved[54];
  } wanted;
  static_assert(sizeof(Wanted) == 88, "as in cuda.h");
  memcpy(&wanted, properties_of_pool, sizeof wanted);
  for (unsigned char byte : wanted.reserved)
    if (byte) return refuse(INVALID_VALUE, "cuMemPoolCreate: reserved bytes are not zero");
  if (wanted.type != 1 || wanted.handles || wanted.location != 1 || wanted.device != context->device || wanted.security ||
      wanted.usage)
    return refuse(INVALID_VALUE, "cuMemPoolCreate: properties");
  const uint64_t handle = fresh_handle();
  pools[handle] = std::make_shared<Pool>(Pool{context, context->device});
  *out = pointer(handle);
  return SUCCESS;
}

// What is allocated from it stays; the pool goes with the last of it.
SHARED int cuMemPoolDestroy(void *pool) {
  ENTER("cuMemPoolDestroy");
  auto found = pools.find(number(pool));
  if (found == pools.end() || !found->second->context) return refuse(INVALID_VALUE, "cuMemPoolDestroy of no pool");
  pools.erase(found);
  return SUCCESS;
}

SHARED int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
  ENTER("cuMemPoolSetAttribute");
  auto *found = find(pools, pool);
  if (!found) return refuse(INVALID_VALUE, "cuMemPoolSetAttribute of no pool");
  if (attribute != 4) return refuse(INVALID_VALUE, "cuMemPoolSetAttribute of another attribute");
  memcpy(&(*found)->threshold, value, sizeof(uint64_t));
  return SUCCESS;
}

SHARED int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *handle) {
  ENTER_CONTEXT("cuMemcpyHtoDAsync_v2");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemcpyHtoDAsync", handle, context, &stream)) return code;
  if (stream->capture) return breaks(stream->capture, "a copy from pageable memory");
  if (memory::ours(number(from))) return refuse(INVALID_VALUE, "a copy to the device from the device");
  if (int code = usable_in(context, "cuMemcpyHtoDAsync", to, size)) return code;
  auto staged = std::make_shared<std::vector<char>>(static_cast<const char *>(from), static_cast<const char *>(from) + size);
  const int device = context->device;
  return submit(stream, "a copy to the device", [=] {
    return touched(device, "a copy to the device", [&] { memcpy(reinterpret_cast<void *>(to), staged->data(), size); });
  });
}

SHARED int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *handle) {
  ENTER_CONTEXT("cuMemcpyDtoHAsync_v2");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemcpyDtoHAsync", handle, context, &stream)) return code;
  if (stream->capture) return breaks(stream->capture, "a copy to pageable memory");
  if (memory::ours(number(to))) return refuse(INVALID_VALUE, "a copy from the device to the device");
  if (int code = usable_in(context, "cuMemcpyDtoHAsync", from, size)) return code;
  const int device = context->device;
  return submit(stream, "a copy from the device", [=] {
    return touched(device, "a copy from the device", [&] { memcpy(to, reinterpret_cast<void *>(from), size); });
  });
}

SHARED int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *handle) {
  ENTER_CONTEXT("cuMemcpyDtoDAsync_v2");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemcpyDtoDAsync", handle, context, &stream)) return code;
  if (int code = usable_in(context, "cuMemcpyDtoDAsync", to, size)) return code;
  if (int code = usable_in(context, "cuMemcpyDtoDAsync", from, size)) return code;
  if (to < from + size && from < to + size) return refuse(INVALID_VALUE, "a copy onto itself");
  const int device = context->device;
  return submit(stream, "a copy", [=] {
    return touched(device, "a copy", [&] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), size); });
  });
}

SHARED int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void *handle) {
  ENTER_CONTEXT("cuMemsetD8Async");
  shared_ptr<Stream> stream;
  if (int code = stream_for("cuMemsetD8Async", handle, context, &stream)) return code;
  if (int code = usable_in(context, "cuMemsetD8Async", to, size)) return code;
  const int device = context->device;
  return submit(stream, "a fill", [=] {
    return touched(device, "a fill", [&] { memset(reinterpret_cast<void *>(to), value, size); });
  });
}
