// Device memory for the stand-in driver: pages that are there exactly while execution says so.
//
// Addresses come from one reserved range, and none is given twice. A piece ends where its last page ends, up to 256
// bytes, and pages that cannot be touched follow it, so that a kernel that runs on hits them; within 256 bytes, and
// in front of the piece, guards are compared when it goes and whenever the host waits. Memory that appears is full of
// 0xff: NaN as bf16 and f32. A touch of what is not there ends the kernel, not the process (`guarded`).
//
// What it cannot show: reads of guards, and a pool that gives a freed address again at once.
#include "driver.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <vector>

namespace memory {
namespace {

constexpr uint64_t BEGIN = 0x2a5b00000000, LENGTH = 1ull << 40;
constexpr size_t PAGE = 4096, ALIGNED = 256;
constexpr unsigned char GUARD = 0xa5, POISON = 0xff;

struct Piece {
  uint64_t base; // of its pages
  size_t pages;  // bytes
  size_t size;
  int device;
  bool there, given_up;
};

std::mutex lock;
std::map<uint64_t, Piece> all;
uint64_t next = 0;

unsigned char *at(uint64_t address) { return reinterpret_cast<unsigned char *>(address); }

// A file full of 0xff, so long: what is mapped of it costs nothing until it is touched.
int poison(size_t bytes) {
  static const int file = memfd_create("poison", 0);
  static size_t length = 0;
  static const std::vector<unsigned char> some(1 << 20, POISON);
  while (length < bytes) {
    if (pwrite(file, some.data(), some.size(), static_cast<off_t>(length)) != static_cast<ssize_t>(some.size())) abort();
    length += some.size();
  }
  return file;
}

bool whole(uint64_t address, const Piece &piece) {
  auto is_guard = [](const unsigned char *from, const unsigned char *to) {
    for (; from < to; from++)
      if (*from != GUARD) return false;
    return true;
  };
  return is_guard(at(piece.base), at(address)) &&
         is_guard(at(address + piece.size), at(piece.base + piece.pages));
}

// Pieces before a device's are not its own.
const Piece *find(int device, uint64_t address, size_t size) {
  auto after = all.upper_bound(address);
  if (after == all.begin()) return nullptr;
  auto &[begin, piece] = *--after;
  const bool within = address - begin <= piece.size && size <= piece.size - (address - begin);
  return within && piece.device == device && !piece.given_up ? &piece : nullptr;
}

// Read by a signal handler, which must not be the first to ask for a thread's own memory.
#define TLS static __thread __attribute__((tls_model("initial-exec")))
TLS sigjmp_buf *escape;
TLS volatile uint64_t touched;
struct sigaction before[2];

void on_fault(int signal, siginfo_t *info, void *context) {
  const auto address = reinterpret_cast<uint64_t>(info->si_addr);
  if (escape && ours(address)) {
    touched = address;
    siglongjmp(*escape, 1);
  }
  // Not ours: the handler that was there before.
  const auto &old = before[signal == SIGBUS];
  if (old.sa_flags & SA_SIGINFO) old.sa_sigaction(signal, info, context);
  else if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) sigaction(signal, &old, nullptr);
  else old.sa_handler(signal);
}

} // namespace

bool ours(uint64_t address) { return address - BEGIN < LENGTH; }

uint64_t reserve(int device, size_t size) {
  std::lock_guard<std::mutex> hold(lock);
  if (!next) {
    void *got = mmap(at(BEGIN), LENGTH, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                     -1, 0);
    if (got != at(BEGIN)) return 0;
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
    next = BEGIN + PAGE;
  }
  const size_t room = (size + ALIGNED - 1) / ALIGNED * ALIGNED, pages = (room + PAGE - 1) / PAGE * PAGE;
  if (pages < size || next + pages + PAGE > BEGIN + LENGTH) return 0;
  const Piece piece = {next, pages, size, device, false, false};
  // A page between pieces belongs to neither.
  next += pages + PAGE;
  const uint64_t address = piece.base + pages - room;
  all[address] = piece;
  return address;
}

void appear(uint64_t address) {
  std::lock_guard<std::mutex> hold(lock);
  Piece &piece = all.at(address);
  mmap(at(piece.base), piece.pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED,
       poison(piece.pages), 0);
  memset(at(piece.base), GUARD, address - piece.base);
  memset(at(address + piece.size), GUARD, piece.base + piece.pages - address - piece.size);
  piece.there = true;
}

bool give_up(int device, uint64_t address) {
  std::lock_guard<std::mutex> hold(lock);
  auto found = all.find(address);
  if (found == all.end() || found->second.device != device || found->second.given_up) return false;
  found->second.given_up = true;
  return true;
}

bool vanish(uint64_t address) {
  std::lock_guard<std::mutex> hold(lock);
  auto found = all.find(address);
  if (found == all.end()) return true;
  const bool good = !found->second.there || whole(address, found->second);
  mmap(at(found->second.base), found->second.pages, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  all.erase(found);
  return good;
}

bool usable(int device, uint64_t address, size_t size) {
  std::lock_guard<std::mutex> hold(lock);
  return find(device, address, size) != nullptr;
}

size_t size_of(uint64_t address) {
  std::lock_guard<std::mutex> hold(lock);
  auto found = all.find(address);
  return found == all.end() ? 0 : found->second.size;
}

std::string damaged(int device) {
  std::lock_guard<std::mutex> hold(lock);
  for (auto &[address, piece] : all)
    if (piece.device == device && piece.there && !whole(address, piece))
      return "something wrote beside a piece of " + std::to_string(piece.size) + " bytes";
  return "";
}

size_t pieces(int device) {
  std::lock_guard<std::mutex> hold(lock);
  size_t count = 0;
  for (auto &[_, piece] : all) count += piece.device == device && !piece.given_up;
  return count;
}

bool guarded(const std::function<void()> &work, uint64_t *where) {
  sigjmp_buf here;
  if (sigsetjmp(here, 1)) {
    escape = nullptr;
    *where = touched;
    return false;
  }
  escape = &here;
  work();
  escape = nullptr;
  return true;
}

} // namespace memory
