// What the stand-in driver knows: contexts, streams with their work, captures, and so on, and how it is executed.
// See cuda.cpp for what all this is.
#pragma once
#include "driver.h"

#include <stdlib.h>
#include <string.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

using std::shared_ptr;
using std::string;

namespace driver {

// The kernels' library, as `compile` makes it.
struct Kernels {
  int (*launch)(const char *, const void *, size_t, const unsigned *, const unsigned *, unsigned, size_t, int, int,
                uint64_t, char *, size_t);
  int (*tensor_map)(void *, int, unsigned, void *, const uint64_t *, const uint64_t *, const unsigned *,
                    const unsigned *, int, int, int, int);
  int (*find)(const char *name, size_t *params, unsigned *threads, const char **file);
};

struct Properties {
  int major = 9, minor = 0, processors = 24;
  size_t memory = size_t(4) << 30;
};

struct Stream;
struct Capture {
  Stream *origin;
  int mode;
  uint64_t thread;
  string broken; // why, if it is
  std::vector<std::pair<const char *, std::function<int()>>> nodes;
  // How many nodes the origin waits for, and how many each stream that was drawn in has put there.
  size_t joined = 0;
  std::map<Stream *, size_t> others;
};

struct Work {
  const char *what;
  std::function<int()> run;
  // Or: waits for so much of another stream.
  shared_ptr<Stream> other;
  uint64_t upto;
};

struct Context;
struct Stream {
  Context *context;
  unsigned flags;
  std::deque<Work> work;
  uint64_t queued = 0, done = 0;
  bool busy = false;
  shared_ptr<Capture> capture;
};

struct Event {
  Context *context;
  unsigned flags;
  shared_ptr<Stream> stream;
  uint64_t at = 0;
  shared_ptr<Capture> capture;
  size_t node = 0;
  shared_ptr<double> time;
};

struct Module {
  Context *context;
  string file; // whose kernels it has; empty: all
};

struct Function {
  Context *context;
  uint64_t module;
  string name;
  size_t params, allowed;
  unsigned threads;
};

using Nodes = std::vector<std::pair<const char *, std::function<int()>>>;
struct Graph {
  Context *context;
  shared_ptr<Nodes> nodes;
};

struct Pool {
  Context *context; // null: a device's own, which is never destroyed
  int device;
  uint64_t threshold = 0;
  size_t used = 0, held = 0;
};

struct Context {
  uint64_t handle;
  int device, retained;
  int error = 0;
  uint64_t random;
};

// Everything is under this lock; kernels run without it.
extern std::mutex lock;
extern Kernels kernels;
extern bool initialised;
constexpr int DEVICES = 256;
extern Properties properties[DEVICES];
extern Context *contexts[DEVICES];
extern std::map<uint64_t, shared_ptr<Stream>> streams;
// Destroyed, with work that is still to be done.
extern std::vector<shared_ptr<Stream>> orphans;
extern std::map<uint64_t, Event> events;
extern std::map<uint64_t, Module> modules;
extern std::map<uint64_t, Function> functions;
extern std::map<uint64_t, Graph> graphs, executables;
extern std::map<uint64_t, shared_ptr<Pool>> pools;
extern std::map<uint64_t, shared_ptr<Pool>> pieces; // where each piece of memory is from
extern std::set<shared_ptr<Capture>> captures;
extern std::map<int, std::map<string, size_t>> counts;
// The calling thread's context.
extern thread_local uint64_t current;
// The device whose context this thread last used, or that a test set up in it; -1 before.
extern thread_local int last_device;

using Lock = std::unique_lock<std::mutex>;

uint64_t fresh_handle();
// Never given twice either, as the system's own numbers of threads are.
uint64_t this_thread();
Context *context_of(uint64_t handle);
inline void *pointer(uint64_t handle) { return reinterpret_cast<void *>(handle); }
inline uint64_t number(const void *handle) { return reinterpret_cast<uint64_t>(handle); }
template <class T> T *find(std::map<uint64_t, T> &all, const void *handle) {
  auto found = all.find(number(handle));
  return found == all.end() ? nullptr : &found->second;
}

// A rule was broken on a device, or by a thread without one.
void complain_of(int device, const string &what);
// A complaint, and its code.
int refuse(int code, const string &what);
// The code that this call shall give by a test's wish, or 0.
int ask_fault(const char *function);
uint64_t roll(Context *context);

// Executes a stream's work up to a number.
void drain(Lock &hold, const shared_ptr<Stream> &stream, uint64_t upto);
std::vector<shared_ptr<Stream>> streams_of(Context *context);
// The host waits: of the other streams a part is done first, or nothing.
void disorder(Lock &hold, Context *context);
// The host has waited.
void waited(Context *context);
void put(const shared_ptr<Stream> &stream, const char *what, std::function<int()> run);
// Queues or records.
int submit(const shared_ptr<Stream> &stream, const char *what, std::function<int()> run);
// Runs what touches a device's memory.
int touched(int device, const string &what, const std::function<void()> &work);

// The stream of a handle, for work of the current context.
int stream_for(const char *function, void *handle, Context *context, shared_ptr<Stream> *out);
int breaks(const shared_ptr<Capture> &capture, const string &what);
// What this thread must not do while it captures, or another one does in the mode for all.
int prohibited(const char *function);
// What waits for a whole context.
int prohibited_in(Context *context, const char *function);
// Whether a copy may have these bytes.
int usable_in(Context *context, const char *function, uint64_t address, size_t size);
// Ends a context, with whatever is left in it.
void destroy(Lock &hold, Context *context);

// At the head of every function: the lock, faults that are planned, and whether the driver was initialised.
#define ENTER(name)                                                                   \
  Lock hold(lock);                                                                    \
  if (int code = ask_fault(name)) return code;                                        \
  if (!initialised) return refuse(NOT_INITIALIZED, string(name) + " before cuInit")

// And for most: the thread's context, which works.
#define ENTER_CONTEXT(name)                                                           \
  ENTER(name);                                                                        \
  Context *const context = context_of(current);                                       \
  if (!context)                                                                       \
    return refuse(current ? CONTEXT_IS_DESTROYED : INVALID_CONTEXT, string(name) + " without a context"); \
  if (context->error) return context->error


} // namespace driver
