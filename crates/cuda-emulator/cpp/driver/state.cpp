// The state of the stand-in driver, and how queued work is executed. See cuda.cpp for what all this is.
#include "state.h"

#include <condition_variable>
#include <dlfcn.h>

namespace driver {

Kernels kernels;
std::mutex lock;
std::condition_variable changed;
bool initialised = false;
Properties properties[DEVICES];
Context *contexts[DEVICES];
std::map<uint64_t, shared_ptr<Stream>> streams;
std::vector<shared_ptr<Stream>> orphans;
std::map<uint64_t, Event> events;
std::map<uint64_t, Module> modules;
std::map<uint64_t, Function> functions;
std::map<uint64_t, Graph> graphs, executables;
std::map<uint64_t, shared_ptr<Pool>> pools;
std::map<uint64_t, shared_ptr<Pool>> pieces;
std::set<shared_ptr<Capture>> captures;
std::map<int, std::vector<string>> complaints;
std::map<int, std::map<string, int>> living;
std::map<int, std::map<string, size_t>> counts;
thread_local uint64_t current = 0;
thread_local int last_device = -1;
thread_local std::map<string, unsigned> calls;
struct Fault {
  string function;
  unsigned nth = 0;
  int code = 0;
};
thread_local Fault planned;
std::map<int, Fault> planned_on; // and the calls that are left until it

uint64_t fresh_handle() {
  static uint64_t next = 0x5e00000000;
  return next += 16;
}

uint64_t this_thread() {
  static thread_local uint64_t mine = fresh_handle();
  return mine;
}

Context *context_of(uint64_t handle) {
  for (Context *context : contexts)
    if (context && context->handle == handle) return context;
  return nullptr;
}

void complain_of(int device, const string &what) { complaints[device].push_back(what); }

// A complaint, and its code. A thread whose context is gone is held against the device that it had last: other
// devices are other tests'.
int refuse(int code, const string &what) {
  Context *context = context_of(current);
  complain_of(context ? context->device : last_device, what + " (" + std::to_string(code) + ")");
  return code;
}

uint64_t roll(Context *context) {
  uint64_t z = context->random += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static bool lasting(int code) { return code == ILLEGAL_ADDRESS || (code >= 702 && code <= 719 && code != CONTEXT_IS_DESTROYED); }

int ask_fault(const char *function) {
  const unsigned call = ++calls[function];
  int code = 0;
  if (planned.nth == call && planned.function == function) code = planned.code;
  Context *context = context_of(current);
  if (context) {
    Fault &there = planned_on[context->device];
    if (there.nth && there.function == function && !--there.nth) code = there.code;
  }
  // Of a child process.
  static const char *text = getenv("STAND_IN_FAIL");
  static unsigned process_calls = 0;
  if (text) {
    const size_t length = strlen(function);
    unsigned nth, wanted;
    if (!strncmp(text, function, length) && sscanf(text + length, ":%u:%u", &nth, &wanted) == 2 &&
        ++process_calls == nth)
      code = static_cast<int>(wanted);
  }
  if (lasting(code) && context) context->error = code;
  if (code == CAPTURE_UNSUPPORTED || code == CAPTURE_INVALIDATED)
    for (auto &capture : captures)
      if (capture->thread == this_thread()) capture->broken = "a planned fault";
  return code;
}

static void run_one(Lock &hold, Stream *stream);

// Executes a stream's work up to a number.
void drain(Lock &hold, const shared_ptr<Stream> &stream, uint64_t upto) {
  while (stream->done < upto && !stream->context->error) {
    if (stream->busy) changed.wait(hold);
    else run_one(hold, stream.get());
  }
}

static void run_one(Lock &hold, Stream *stream) {
  Context *const context = stream->context;
  Work work = std::move(stream->work.front());
  stream->work.pop_front();
  stream->busy = true;
  if (work.other) drain(hold, work.other, work.upto);
  int code = context->error;
  if (!code && work.run) {
    hold.unlock();
    code = work.run();
    hold.lock();
  }
  stream->busy = false;
  stream->done++;
  if (code && !context->error) context->error = code;
  changed.notify_all();
}

std::vector<shared_ptr<Stream>> streams_of(Context *context) {
  std::vector<shared_ptr<Stream>> all;
  for (auto &[_, stream] : streams)
    if (stream->context == context) all.push_back(stream);
  for (auto &stream : orphans)
    if (stream->context == context) all.push_back(stream);
  return all;
}

// The host waits: of the other streams a part is done first, or nothing.
void disorder(Lock &hold, Context *context) {
  for (auto &stream : streams_of(context)) {
    const uint64_t left = stream->queued - stream->done, kind = roll(context) % 3;
    if (kind && left) drain(hold, stream, stream->done + (kind == 1 ? left : roll(context) % (left + 1)));
  }
}

// The host has waited.
void waited(Context *context) {
  for (auto &[_, pool] : pools)
    if (pool->device == context->device && pool->held > pool->threshold) {
      if (pool->held > pool->used) counts[context->device]["released"]++;
      pool->held = pool->used;
    }
  const string damage = memory::damaged(context->device);
  if (!damage.empty()) complain_of(context->device, damage);
}

void put(const shared_ptr<Stream> &stream, const char *what, std::function<int()> run) {
  stream->work.push_back({what, std::move(run), nullptr, 0});
  stream->queued++;
}

// The stream of a handle, for work of the current context.
int stream_for(const char *function, void *handle, Context *context, shared_ptr<Stream> *out) {
  if (number(handle) <= 2) {
    // The legacy stream: it is seldom meant, and others wait for it unasked.
    for (auto &capture : captures)
      if (capture->origin->context == context && !(capture->origin->flags & 1)) {
        capture->broken = "the legacy stream was used";
        return refuse(CAPTURE_IMPLICIT, string(function) + " on the legacy stream while a blocking one is captured");
      }
    return refuse(NOT_SUPPORTED, string(function) + " on the legacy stream");
  }
  auto *found = find(streams, handle);
  if (!found) return refuse(INVALID_HANDLE, string(function) + " on a stream that does not exist");
  if ((*found)->context != context)
    return refuse(INVALID_HANDLE, string(function) + " on a stream of another context");
  if ((*found)->capture && !(*found)->capture->broken.empty()) return CAPTURE_INVALIDATED;
  *out = *found;
  return SUCCESS;
}

int breaks(const shared_ptr<Capture> &capture, const string &what) {
  capture->broken = what;
  return refuse(CAPTURE_UNSUPPORTED, what + " while a stream is captured");
}

// What this thread must not do while it captures, or another one does in the mode for all.
int prohibited(const char *function) {
  for (auto &capture : captures) {
    const bool mine = capture->thread == this_thread();
    if ((mine && capture->mode != 2) || capture->mode == 0) return breaks(capture, function);
  }
  return SUCCESS;
}

// What waits for a whole context.
int prohibited_in(Context *context, const char *function) {
  for (auto &capture : captures)
    if (capture->origin->context == context) return breaks(capture, function);
  return SUCCESS;
}

// Queues or records.
int submit(const shared_ptr<Stream> &stream, const char *what, std::function<int()> run) {
  if (auto &capture = stream->capture) {
    capture->nodes.emplace_back(what, std::move(run));
    if (stream.get() == capture->origin) capture->joined = capture->nodes.size();
    else capture->others[stream.get()] = capture->nodes.size();
  } else {
    put(stream, what, std::move(run));
  }
  return SUCCESS;
}

int touched(int device, const string &what, const std::function<void()> &work) {
  uint64_t where = 0;
  if (memory::guarded(work, &where)) return SUCCESS;
  char text[64];
  snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(where));
  Lock hold(lock);
  complain_of(device, what + " touched " + text + ", where nothing is allocated now");
  return ILLEGAL_ADDRESS;
}

int usable_in(Context *context, const char *function, uint64_t address, size_t size) {
  if (memory::usable(context->device, address, size)) return SUCCESS;
  return refuse(INVALID_VALUE, string(function) + " of " + std::to_string(size) + " bytes that the device does not have");
}

template <class T> static size_t of_context(const std::map<uint64_t, T> &all, Context *context) {
  size_t count = 0;
  for (auto &[_, object] : all) count += object.context == context;
  return count;
}

static void append(string &out, size_t count, const char *what) {
  if (!count) return;
  if (!out.empty()) out += ", ";
  out += std::to_string(count) + " " + what;
}

// What of a device's context is still there, in words.
static string left(int device) {
  Context *context = contexts[device];
  string out;
  if (context) {
    append(out, context->retained, "retained contexts");
    size_t count = 0;
    for (auto &[_, stream] : streams) count += stream->context == context;
    append(out, count, "streams");
    append(out, of_context(events, context), "events");
    append(out, of_context(modules, context), "modules");
    append(out, of_context(graphs, context), "graphs");
    append(out, of_context(executables, context), "executable graphs");
    count = 0;
    for (auto &[_, pool] : pools) count += pool->context == context;
    append(out, count, "pools");
  }
  append(out, memory::pieces(device), "pieces of memory");
  for (auto &[kind, count] : living[device]) append(out, static_cast<size_t>(count), kind.c_str());
  return out;
}

// What the context takes with it. After an error of its own nothing can be freed.
void destroy(Lock &hold, Context *context) {
  for (auto &stream : streams_of(context)) drain(hold, stream, stream->queued);
  const string rest = left(context->device);
  if (!rest.empty() && !context->error) complain_of(context->device, "the context is released with " + rest);
  auto of = [&](auto &all) {
    for (auto it = all.begin(); it != all.end();) it = it->second.context == context ? all.erase(it) : std::next(it);
  };
  of(events), of(modules), of(functions), of(graphs), of(executables);
  for (auto it = captures.begin(); it != captures.end();)
    it = (*it)->origin->context == context ? captures.erase(it) : std::next(it);
  for (auto it = streams.begin(); it != streams.end();)
    it = it->second->context == context ? streams.erase(it) : std::next(it);
  for (auto it = orphans.begin(); it != orphans.end();) it = (*it)->context == context ? orphans.erase(it) : std::next(it);
  for (auto it = pools.begin(); it != pools.end();)
    it = it->second->device == context->device ? pools.erase(it) : std::next(it);
  for (auto it = pieces.begin(); it != pieces.end();) {
    if (it->second->device != context->device) {
      ++it;
      continue;
    }
    memory::vanish(it->first);
    it = pieces.erase(it);
  }
  living[context->device].clear();
  contexts[context->device] = nullptr;
  delete context;
}

} // namespace driver

using namespace driver;

// For tests, and for the stand-in of cuBLASLt.

namespace stand_in {

int enqueue(void *handle, const char *what, std::function<int()> work) {
  Lock hold(lock);
  Context *const context = context_of(current);
  if (!context) return refuse(INVALID_CONTEXT, string(what) + " without a context");
  if (context->error) return context->error;
  shared_ptr<Stream> stream;
  if (int code = stream_for(what, handle, context, &stream)) return code;
  return submit(stream, what, std::move(work));
}

void complain(const string &what) {
  Lock hold(lock);
  refuse(0, what);
}

void alive(const char *kind, int more) {
  Lock hold(lock);
  Context *const context = context_of(current);
  if (context) living[context->device][kind] += more;
}

void count(const char *what) {
  Lock hold(lock);
  Context *const context = context_of(current);
  if (context) counts[context->device][what]++;
}

int fault(const char *function) {
  Lock hold(lock);
  return ask_fault(function);
}

int current_device() {
  Lock hold(lock);
  Context *const context = context_of(current);
  return context ? context->device : -1;
}

bool usable(uint64_t address, size_t size) { return memory::usable(current_device(), address, size); }

int touch(int device, const char *what, const std::function<void()> &work) { return touched(device, what, work); }

} // namespace stand_in

// Says where the kernels are; -1 if they cannot be loaded. Without it: $STAND_IN_KERNELS.
SHARED int stand_in_kernels(const char *path) {
  void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (!library) return -1;
  Lock hold(lock);
  kernels.launch = reinterpret_cast<decltype(kernels.launch)>(dlsym(library, "cuda_emulator_launch"));
  kernels.find = reinterpret_cast<decltype(kernels.find)>(dlsym(library, "cuda_emulator_kernel"));
  return kernels.launch && kernels.find ? 0 : -1;
}

// What a device is, before it is opened.
SHARED void stand_in_device(int device, int major, int minor, int processors, size_t bytes) {
  Lock hold(lock);
  properties[device] = {major, minor, processors, bytes};
  last_device = device;
}

// The `nth` call of a function by this thread from now on gives `code`; 0: none does. Counts anew.
SHARED void stand_in_fail(const char *function, unsigned nth, int code) {
  Lock hold(lock);
  calls.clear();
  planned = {function, nth, code};
}

// The same for calls by any thread on a device.
SHARED void stand_in_fail_on(int device, const char *function, unsigned nth, int code) {
  Lock hold(lock);
  planned_on[device] = {function, nth, code};
}

// What this thread has called since the last `stand_in_fail`, and how often, one function a line.
SHARED size_t stand_in_calls(int, char *out, size_t size) {
  Lock hold(lock);
  string all;
  for (auto &[name, count] : calls) all += name + " " + std::to_string(count) + "\n";
  return snprintf(out, size, "%s", all.c_str());
}

// What was done on a device, by a word of `count` or a function that executes.
SHARED size_t stand_in_count(int device, const char *what) {
  Lock hold(lock);
  return counts[device][what];
}

// Rules that were broken on a device, or by threads that never had one, one a line; forgotten then.
SHARED size_t stand_in_complaints(int device, char *out, size_t size) {
  Lock hold(lock);
  string all;
  for (int of : {device, -1}) {
    for (auto &what : complaints[of]) all += what + "\n";
    complaints[of].clear();
  }
  return snprintf(out, size, "%s", all.c_str());
}

// What was never freed on a device, in words.
SHARED size_t stand_in_left(int device, char *out, size_t size) {
  Lock hold(lock);
  return snprintf(out, size, "%s", left(device).c_str());
}

