// Executes kernels on a CPU, to find their mistakes without a GPU.
//
// Blocks run one after another, those of a cluster together (hopper.inc). The threads of a block are
// fibers: each runs until it needs others, at a barrier or a warp collective, and then the next one does,
// in ascending, descending or random order. So a result that depends on an order that is not promised differs between runs. Shared memory
// holds NaN before each block. Copies land early or late (see copy_async). What cannot continue is
// reported with file and line: barriers that only some threads reach, lanes at different collectives,
// deadlocks.
//
// It shows neither speed nor weak memory order nor the rounding of tensor cores. A lost update, too,
// needs the thread sanitizer, to which every CUDA thread is a thread and only barriers order them.
#include "cuda_emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_THREAD__) || defined(WITH_TSAN)
#include <sanitizer/tsan_interface.h>
#define TSAN 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN 1
#endif

#if defined(__x86_64__)
// Saves what a callee must, changes stacks, and returns on the other one.
asm(R"(
.text
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");
extern "C" void cuda_emulator_switch(void **save, void *to);
#else
#include <ucontext.h>
#endif

namespace host {

TLS Index thread_index, block_index, block_size, grid_size;

namespace {

const Registered *registered;

enum Order { ASCENDING, DESCENDING, RANDOM };

struct Copy {
  void *to;
  const void *from;
  unsigned bytes, valid;
};

constexpr size_t STACK = 256 << 10;
// Stacks begin at addresses of their own modulo a page, or their tops would share the same few sets of every cache.
constexpr size_t STAGGER = 1088, STAGGERED = 64 << 10;
constexpr size_t stack_of(unsigned thread) { return STACK - thread * STAGGER % STAGGERED; }

// What any device with clusters can run.
constexpr unsigned MAX_CLUSTER = 8;

enum State : unsigned char { READY, WAITING, DONE };

struct Fiber {
  char *stack;
#if defined(__x86_64__)
  void *top;
#else
  ucontext_t context;
#endif
  // What it waits for.
  const char *what, *file;
  int line;
  // Groups of copies under way, the last one still open.
  std::vector<std::vector<Copy>> copies;
#ifdef TSAN
  void *tsan;
#endif
#ifdef ASAN
  void *fake;
#endif
};

struct Warp {
  void *lanes[32];
  const char *what, *file;
  int line;
  unsigned mask, arrived;
  // See Machine::phases.
  unsigned phase;
  char phases[2];
};

struct Machine {
  std::vector<Fiber> fibers;
  // Of each fiber, side by side: the scheduler looks at all of them between any two.
  std::vector<State> states;
  std::vector<Warp> warps;
  // Of each block of the cluster; where there are no clusters, of the one block.
  unsigned char *shared[MAX_CLUSTER];
  size_t shared_bytes;
  // Blocks of a cluster, in all and to each side, and threads of a block.
  unsigned blocks, cluster[3], block_threads;
  const Registered *kernel;
  const void *params;
  Order order;
  bool late;
  uint64_t seed;
  // Threads of all blocks of a cluster; those of one block follow each other.
  unsigned threads, current;
  // Of each block.
  unsigned arrived[MAX_CLUSTER];
  // What the thread sanitizer sees threads meet at. One barrier's and the next one's are two, or who
  // leaves the first late would seem to come after what others did before the second.
  unsigned phase[MAX_CLUSTER];
  char phases[MAX_CLUSTER][2];
  bool failed;
  std::string report;
  // The first of the cluster.
  Index first_block;
#if defined(__x86_64__)
  void *top;
#else
  ucontext_t context;
#endif
#ifdef TSAN
  void *tsan;
#endif
#ifdef ASAN
  void *fake;
  const void *stack;
  size_t stack_size;
#endif
  ~Machine() {
    for (auto &fiber : fibers) munmap(fiber.stack, STACK);
  }
};

TLS Machine *machine;

// The cluster's own part of a launch: hopper.inc.
void cluster_begin();
void cluster_ended();
void cluster_turn();
bool cluster_land();
void cluster_end();

uint64_t next_random(uint64_t &state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

// By a product, as a division takes longer than most fibers run.
unsigned below(unsigned end, uint64_t &state) {
  return static_cast<unsigned>((next_random(state) >> 32) * end >> 32);
}

// From a fiber to the scheduler. A fiber that has `ended` is not entered again.
void leave(bool ended) {
  Machine &m = *machine;
  Fiber &me = m.fibers[m.current];
  (void)ended;
#ifdef TSAN
  __tsan_switch_to_fiber(m.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef ASAN
  __sanitizer_start_switch_fiber(ended ? nullptr : &me.fake, m.stack, m.stack_size);
#endif
#if defined(__x86_64__)
  cuda_emulator_switch(&me.top, m.top);
#else
  swapcontext(&me.context, &m.context);
#endif
#ifdef ASAN
  __sanitizer_finish_switch_fiber(me.fake, &m.stack, &m.stack_size);
#endif
}

void enter(unsigned thread) {
  Machine &m = *machine;
  Fiber &next = m.fibers[thread];
  m.current = thread;
  thread_index.x = thread;
  if (m.blocks > 1) {
    const unsigned rank = thread / m.block_threads;
    thread_index.x = thread % m.block_threads;
    block_index = {m.first_block.x + rank % m.cluster[0], m.first_block.y + rank / m.cluster[0] % m.cluster[1],
                   m.first_block.z + rank / (m.cluster[0] * m.cluster[1])};
  }
#ifdef TSAN
  __tsan_switch_to_fiber(next.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef ASAN
  __sanitizer_start_switch_fiber(&m.fake, next.stack, STACK);
#endif
#if defined(__x86_64__)
  cuda_emulator_switch(&m.top, next.top);
#else
  swapcontext(&m.context, &next.context);
#endif
#ifdef ASAN
  __sanitizer_finish_switch_fiber(m.fake, nullptr, nullptr);
#endif
}

void acquire(void *at) {
#ifdef TSAN
  __tsan_acquire(at);
#else
  (void)at;
#endif
}

void release(void *at) {
#ifdef TSAN
  __tsan_release(at);
#else
  (void)at;
#endif
}

void fiber_main() {
  Machine &m = *machine;
#ifdef ASAN
  __sanitizer_finish_switch_fiber(nullptr, &m.stack, &m.stack_size);
#endif
  acquire(&m.kernel);
  m.kernel->run(m.params);
  release(&m.params);
  m.states[m.current] = DONE;
  if (m.blocks > 1) cluster_ended();
  leave(true);
  abort();
}

void start(Fiber &fiber, unsigned thread) {
  // The open group alone; its memory is kept.
  fiber.copies.resize(1);
  fiber.copies.front().clear();
#ifdef TSAN
  fiber.tsan = __tsan_create_fiber(0);
#endif
#ifdef ASAN
  fiber.fake = nullptr;
  __asan_unpoison_memory_region(fiber.stack, STACK);
#endif
#if defined(__x86_64__)
  // As if fiber_main had been left by cuda_emulator_switch: six registers, where to return to, and the stack
  // as it is after a call.
  auto top = reinterpret_cast<void **>(fiber.stack + stack_of(thread));
  *--top = nullptr;
  *--top = reinterpret_cast<void *>(fiber_main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.top = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = stack_of(thread);
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
#endif
}

// Mostly one and the same literal.
bool same_file(const char *a, const char *b) { return a == b || strcmp(a, b) == 0; }

std::string place(const char *what, const char *file, int line) {
  const char *slash = strrchr(file, '/');
  return std::string(what) + " at " + (slash ? slash + 1 : file) + ":" + std::to_string(line);
}

// No lane can continue: which waits where.
std::string deadlock() {
  Machine &m = *machine;
  std::map<std::string, unsigned> waiting;
  unsigned ended = 0;
  for (unsigned i = 0; i < m.threads; i++) {
    const Fiber &f = m.fibers[i];
    if (m.states[i] == DONE) ended++;
    else waiting[place(f.what, f.file, f.line)]++;
  }
  std::string out = "deadlock:";
  for (auto &[at, count] : waiting)
    out += " " + std::to_string(count) + " threads wait for a " + at + ";";
  return out + " " + std::to_string(ended) + " of " + std::to_string(m.threads) + " have ended";
}

void wait_here(const char *what, const char *file, int line) {
  Fiber &me = machine->fibers[machine->current];
  machine->states[machine->current] = WAITING;
  me.what = what;
  me.file = file;
  me.line = line;
  leave(false);
}

void land(const Copy &copy) {
  memcpy(copy.to, copy.from, copy.valid);
  memset(static_cast<char *>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

// Threads that can run, in the order of this round; `ready` has room for all of them.
unsigned in_order(unsigned *ready) {
  Machine &m = *machine;
  unsigned count = 0;
  for (unsigned i = 0; i < m.threads; i++) {
    const unsigned thread = m.order == DESCENDING ? m.threads - 1 - i : i;
    if (m.states[thread] == READY) ready[count++] = thread;
  }
  // Of a cluster one block as long as it can run, or any one's threads, or all: blocks may be far apart.
  if (m.blocks > 1 && count) {
    const unsigned one = m.order == RANDOM ? ready[below(count, m.seed)] : ready[0];
    if (m.order != RANDOM || below(2, m.seed)) {
      const auto other = [&](unsigned thread) { return thread / m.block_threads != one / m.block_threads; };
      count = static_cast<unsigned>(std::remove_if(ready, ready + count, other) - ready);
    }
  }
  if (m.order == RANDOM)
    for (unsigned i = count; i > 1; i--) std::swap(ready[i - 1], ready[below(i, m.seed)]);
  return count;
}

void run_block(std::vector<unsigned> &ready) {
  Machine &m = *machine;
  for (unsigned rank = 0; rank < m.blocks; rank++) {
    memset(m.shared[rank], 0xff, m.shared_bytes);
    m.arrived[rank] = 0;
  }
  for (auto &warp : m.warps) warp = {};
  if (m.blocks > 1) cluster_begin();
  release(&m.kernel);
  m.states.assign(m.threads, READY);
  for (unsigned i = 0; i < m.threads; i++) start(m.fibers[i], i);
  unsigned count;
  do {
    while (!m.failed && (count = in_order(ready.data())))
      for (unsigned i = 0; i < count && !m.failed; i++) {
        enter(ready[i]);
        if (m.blocks > 1) cluster_turn();
      }
    // Where no thread can run, what is under way to the shared memory of a cluster arrives.
  } while (!m.failed && m.blocks > 1 && cluster_land());
  const auto done = [](State state) { return state == DONE; };
  if (!m.failed && !std::all_of(m.states.begin(), m.states.end(), done)) {
    m.report = deadlock();
    m.failed = true;
  }
  if (m.blocks > 1 && !m.failed) cluster_end();
  // To the thread sanitizer blocks follow each other, as they do here.
  acquire(&m.params);
#ifdef TSAN
  for (unsigned i = 0; i < m.threads; i++) __tsan_destroy_fiber(m.fibers[i].tsan);
#endif
}

} // namespace

Registered::Registered(const char *name, size_t params, unsigned threads, void (*run)(const void *),
                       unsigned cluster, unsigned registers, const char *file)
    : name(name), params(params), threads(threads), run(run), cluster(cluster), registers(registers), file(file),
      next(registered) {
  registered = this;
}

unsigned char *shared_memory() { return machine->shared[machine->current / machine->block_threads]; }

void fail(const char *what, const char *file, int line) {
  machine->failed = true;
  machine->report = place(what, file, line) + ", thread " + std::to_string(thread_index.x);
  leave(true);
  abort();
}

void barrier(const char *file, int line) {
  Machine &m = *machine;
  const unsigned rank = m.current / m.block_threads, first = rank * m.block_threads;
  char *const meeting = &m.phases[rank][m.phase[rank] % 2];
  release(meeting);
  if (++m.arrived[rank] < m.block_threads) {
    wait_here("barrier", file, line);
  } else {
    m.arrived[rank] = 0;
    m.phase[rank]++;
    for (unsigned i = first; i < first + m.block_threads; i++) {
      Fiber &f = m.fibers[i];
      if (i == m.current) continue;
      if (f.line != line || !same_file(f.file, file))
        fail(("threads meet at different barriers, this one and " + place("that", f.file, f.line))
                 .c_str(),
             file, line);
      m.states[i] = READY;
    }
  }
  acquire(meeting);
}

void collective(const char *what, unsigned mask, void *payload, void (*compute)(void **lanes),
                const char *file, int line) {
  Machine &m = *machine;
  const unsigned lane = m.current % 32;
  Warp &warp = m.warps[m.current / 32];
  if (!(mask >> lane & 1)) fail("a lane calls a collective whose mask lacks it", file, line);
  if (!warp.arrived) {
    warp.what = what;
    warp.file = file;
    warp.line = line;
    warp.mask = mask;
  } else if (warp.mask != mask || warp.line != line || !same_file(warp.file, file)) {
    fail(("lanes diverge: others wait for a " + place(warp.what, warp.file, warp.line) +
          ", this one for a " + what)
             .c_str(),
         file, line);
  }
  warp.lanes[lane] = payload;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) {
    wait_here(what, file, line);
    return;
  }
  if (compute) compute(warp.lanes);
  for (unsigned i = 0; i < 32; i++)
    if (mask >> i & 1 && i != lane) m.states[m.current - lane + i] = READY;
  const unsigned phase = warp.phase + 1;
  warp = {};
  warp.phase = phase;
}

void warp_barrier(unsigned mask, const char *file, int line) {
  Warp &warp = machine->warps[machine->current / 32];
  char *const meeting = &warp.phases[warp.phase % 2];
  release(meeting);
  collective("warp barrier", mask, nullptr, nullptr, file, line);
  acquire(meeting);
}

void copy_async(void *to, const void *from, unsigned bytes, unsigned valid, const char *file, int line) {
  Machine &m = *machine;
  const Copy copy{to, from, bytes, valid};
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("a copy is not aligned", file, line);
  if (m.late) m.fibers[m.current].copies.back().push_back(copy);
  else land(copy);
}

void copy_commit() {
  auto &copies = machine->fibers[machine->current].copies;
  copies.emplace_back();
}

void copy_wait(unsigned left) {
  auto &copies = machine->fibers[machine->current].copies;
  // The open group counts for none.
  while (copies.size() > left + 1) {
    for (const auto &copy : copies.front()) land(copy);
    copies.erase(copies.begin());
  }
}

} // namespace host

// What a device's own loader would know of a kernel: bytes of its parameters, most threads of a block, and the stem of
// its file. 0 for a name that it lacks.
extern "C" int cuda_emulator_kernel(const char *name, size_t *params, unsigned *threads, const char **file) {
  for (const host::Registered *kernel = host::registered; kernel; kernel = kernel->next) {
    if (strcmp(kernel->name, name) != 0) continue;
    static thread_local std::string stem;
    const char *slash = strrchr(kernel->file, '/');
    stem = slash ? slash + 1 : kernel->file;
    stem.resize(std::min(stem.size(), stem.find('.')));
    *params = kernel->params;
    *threads = kernel->threads;
    *file = stem.c_str();
    return 1;
  }
  return 0;
}

// Runs a kernel in clusters of blocks; 0, or a line in `report`. `grid` and `cluster` have three numbers; order 0
// ascending, 1 descending, 2 random by `seed`; `late` lets copies land as late as they may.
extern "C" int cuda_emulator_launch(const char *name, const void *params, size_t size, const unsigned *grid,
                                      const unsigned *cluster, unsigned threads, size_t shared_bytes, int order,
                                      int late, uint64_t seed, char *report, size_t report_size) {
  using namespace host;
  auto refuse = [&](const std::string &why) {
    snprintf(report, report_size, "%s", why.c_str());
    return 1;
  };
  const Registered *kernel = registered;
  while (kernel && strcmp(kernel->name, name) != 0) kernel = kernel->next;
  if (!kernel) return refuse("no such kernel");
  if (size != kernel->params)
    return refuse("its params have " + std::to_string(kernel->params) + " bytes, not " +
                  std::to_string(size));
  if (!threads || threads % 32 || threads > kernel->threads)
    return refuse("blocks of " + std::to_string(threads) + " threads; it takes whole warps up to " +
                  std::to_string(kernel->threads));
  if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535)
    return refuse("a grid that CUDA does not take");
  if (shared_bytes > 227 << 10) return refuse("more shared memory than a block can have");
  const uint64_t blocks = uint64_t(cluster[0]) * cluster[1] * cluster[2];
  if (!blocks || blocks > MAX_CLUSTER || grid[0] % cluster[0] || grid[1] % cluster[1] || grid[2] % cluster[2])
    return refuse("a grid that is not made of such clusters");
  if (kernel->cluster && kernel->cluster != blocks)
    return refuse("clusters of " + std::to_string(blocks) + " blocks; it takes " + std::to_string(kernel->cluster));

  // Not in the thread's own memory, of which libraries that are loaded late share little.
  static thread_local std::unique_ptr<Machine> kept;
  if (!kept) kept = std::make_unique<Machine>();
  Machine &m = *(machine = kept.get());
  while (m.fibers.size() < threads * blocks) {
    Fiber fiber{};
    void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) return refuse("no memory for another stack");
    fiber.stack = static_cast<char *>(stack);
    m.fibers.push_back(std::move(fiber));
  }
  m.warps.assign(threads * blocks / 32, {});
  m.kernel = kernel;
  // Aligned as any struct may ask.
  struct alignas(128) Piece {
    unsigned char bytes[128];
  };
  std::vector<Piece> copied((size + sizeof(Piece) - 1) / sizeof(Piece));
  memcpy(copied.data(), params, size);
  m.params = copied.data();
  m.order = static_cast<Order>(order);
  m.late = late != 0;
  m.seed = seed;
  m.block_threads = threads;
  m.threads = threads * static_cast<unsigned>(blocks);
  m.blocks = static_cast<unsigned>(blocks);
  std::copy(cluster, cluster + 3, m.cluster);
  m.failed = false;
  m.shared_bytes = shared_bytes;
#ifdef TSAN
  m.tsan = __tsan_get_current_fiber();
#endif
  // Exactly as large as asked for, so that the address sanitizer sees the end.
  for (unsigned rank = 0; rank < m.blocks; rank++) {
    void *shared = nullptr;
    if (posix_memalign(&shared, 128, shared_bytes ? shared_bytes : 1)) return refuse("no memory");
    m.shared[rank] = static_cast<unsigned char *>(shared);
  }
  block_size = {threads, 1, 1};
  grid_size = {grid[0], grid[1], grid[2]};
  thread_index = {0, 0, 0};
  std::vector<unsigned> ready(m.threads);
  for (unsigned z = 0; z < grid[2] && !m.failed; z += cluster[2])
    for (unsigned y = 0; y < grid[1] && !m.failed; y += cluster[1])
      for (unsigned x = 0; x < grid[0] && !m.failed; x += cluster[0]) {
        block_index = m.first_block = {x, y, z};
        run_block(ready);
      }
  for (unsigned rank = 0; rank < m.blocks; rank++) free(m.shared[rank]);
  if (!m.failed) return 0;
  return refuse(m.report + ", block (" + std::to_string(block_index.x) + ", " +
                std::to_string(block_index.y) + ", " + std::to_string(block_index.z) + ")");
}

// Of the same machine: what clusters share, and copies and matmuls that run beside the threads.
#include "hopper.inc"
