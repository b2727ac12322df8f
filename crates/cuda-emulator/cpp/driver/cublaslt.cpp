// Stands in for cuBLASLt without a GPU: the matrix products of libcublasLt.so and their heuristics, over the
// stand-in driver (cuda.cpp), whose streams and memory it uses.
//
// It checks what the library checks or its documentation demands (cublasLt.h, and "cublasLtMatmul" in the cuBLAS
// guide): sizes of attributes, combinations of types, leading dimensions, shapes that fit each other, addresses as
// aligned as the preference had it (256 bytes unless it said less), the workspace's size and alignment, an algorithm
// of that very problem, the bias where the epilogue wants one. All operands must be memory that is there in the order
// of calls. A product is a plain sum in f32, in the order of k, when the stream comes to it; it also fills its
// workspace with 0xff, so that sharing it shows. Objects are counted.
//
// What it cannot show: which algorithm the library would choose, its roundings, and shapes that it does not support
// on some architecture: `stand_in_fail` says so for it, on cublasLtMatmulAlgoGetHeuristic.
#include "driver.h"

#include <math.h>
#include <string.h>

#include <map>
#include <mutex>
#include <string>

using stand_in::alive;
using stand_in::complain;
using stand_in::fault;
using std::string;

namespace {

enum { OK = 0, UNINITIALISED = 1, WRONG = 7, EXECUTION_FAILED = 13, UNSUPPORTED = 15 };
enum { F32 = 0, BF16 = 14 };
constexpr int COMPUTE_32F = 68;
constexpr uint64_t ALIGNED = 256;
// What the algorithm wants of the workspace where it may have it.
constexpr size_t WORKSPACE = 1 << 20;

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t ld;
  uint64_t bytes() const { return ((columns - 1) * static_cast<uint64_t>(ld) + rows) * (type == F32 ? 4 : 2); }
};

struct Operation {
  int compute, scale;
  int transposed[2] = {0, 0};
  uint32_t epilogue = 1;
  uint64_t bias = 0;
};

struct Preference {
  size_t workspace = 0;
};

// As cublasLt.h has it.
struct Algorithm {
  uint64_t data[8];
};
struct Found {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

std::mutex lock;
std::map<uint64_t, int> handles; // and the device of each
std::map<uint64_t, Layout> layouts;
std::map<uint64_t, Operation> operations;
std::map<uint64_t, Preference> preferences;

uint64_t fresh() {
  static uint64_t next = 0xb1a500000000;
  return next += 16;
}

using Lock = std::unique_lock<std::mutex>;

int wrong(const string &what, int code = WRONG) {
  complain("cublasLt: " + what + " (" + std::to_string(code) + ")");
  return code;
}

template <class T> T *find(std::map<uint64_t, T> &all, const void *handle) {
  auto found = all.find(reinterpret_cast<uint64_t>(handle));
  return found == all.end() ? nullptr : &found->second;
}

template <class T> int add(std::map<uint64_t, T> &all, const T &object, void **out, const char *kind) {
  Lock hold(lock);
  const uint64_t handle = fresh();
  all[handle] = object;
  *out = reinterpret_cast<void *>(handle);
  alive(kind, 1);
  return OK;
}

template <class T> int drop(std::map<uint64_t, T> &all, const void *handle, const char *kind) {
  Lock hold(lock);
  if (!all.erase(reinterpret_cast<uint64_t>(handle))) return wrong(string("one of the ") + kind + " is destroyed twice");
  alive(kind, -1);
  return OK;
}

// A problem as the heuristic and the product see it.
struct Problem {
  Operation operation;
  Layout a, b, c, d;
};

int look_up(Problem *out, const void *operation, const void *a, const void *b, const void *c, const void *d) {
  const Operation *found = find(operations, operation);
  const Layout *of[4] = {find(layouts, a), find(layouts, b), find(layouts, c), find(layouts, d)};
  if (!found) return wrong("no operation descriptor");
  for (const Layout *layout : of)
    if (!layout) return wrong("no matrix layout");
  *out = {*found, *of[0], *of[1], *of[2], *of[3]};
  return OK;
}

int check(const Problem &p) {
  const auto &[operation, a, b, c, d] = p;
  for (const Layout *layout : {&a, &b, &c, &d})
    if (!layout->rows || !layout->columns || layout->ld < static_cast<int64_t>(layout->rows))
      return wrong("a leading dimension of " + std::to_string(layout->ld) + " for " + std::to_string(layout->rows) + " rows");
  const bool ta = operation.transposed[0], tb = operation.transposed[1];
  const uint64_t m = ta ? a.columns : a.rows, k = ta ? a.rows : a.columns;
  const uint64_t kb = tb ? b.columns : b.rows, n = tb ? b.rows : b.columns;
  if (k != kb || d.rows != m || d.columns != n || c.rows != m || c.columns != n) return wrong("shapes that do not fit");
  if (operation.compute != COMPUTE_32F || operation.scale != F32) return wrong("no such compute type here", UNSUPPORTED);
  const bool types = (a.type == F32 && b.type == F32) || (a.type == BF16 && b.type == BF16);
  if (!types || c.type != F32 || d.type != F32) return wrong("no such combination of types here", UNSUPPORTED);
  if (operation.epilogue != 1 && operation.epilogue != 4) return wrong("no such epilogue here", UNSUPPORTED);
  if (operation.epilogue == 4 && !operation.bias) return wrong("an epilogue with a bias, and no bias");
  return OK;
}

Algorithm algorithm_for(const Problem &p, size_t workspace) {
  Algorithm algorithm = {{0x5eed, workspace, p.a.rows ^ p.a.columns << 32, p.b.columns, static_cast<uint64_t>(p.a.ld),
                          static_cast<uint64_t>(p.b.ld), static_cast<uint64_t>(p.d.ld),
                          static_cast<uint64_t>(p.a.type) << 32 | p.operation.epilogue}};
  return algorithm;
}

float element(const Layout &layout, uint64_t base, uint64_t row, uint64_t column) {
  const uint64_t at = column * static_cast<uint64_t>(layout.ld) + row;
  if (layout.type == F32) return reinterpret_cast<const float *>(base)[at];
  const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t *>(base)[at]) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void multiply(const Problem &p, float alpha, float beta, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t bias) {
  const auto &operation = p.operation;
  const uint64_t inner = operation.transposed[0] ? p.a.rows : p.a.columns;
  for (uint64_t j = 0; j < p.d.columns; j++)
    for (uint64_t i = 0; i < p.d.rows; i++) {
      float sum = 0.0f;
      for (uint64_t k = 0; k < inner; k++)
        sum += (operation.transposed[0] ? element(p.a, a, k, i) : element(p.a, a, i, k)) *
               (operation.transposed[1] ? element(p.b, b, j, k) : element(p.b, b, k, j));
      sum *= alpha;
      // Where beta is 0, c is not read: it may hold anything.
      if (beta != 0.0f) sum += beta * element(p.c, c, i, j);
      if (operation.epilogue == 4) sum += reinterpret_cast<const float *>(bias)[i];
      reinterpret_cast<float *>(d)[j * static_cast<uint64_t>(p.d.ld) + i] = sum;
    }
}

} // namespace

SHARED int cublasLtCreate(void **out) {
  if (int code = fault("cublasLtCreate")) return code;
  const int device = stand_in::current_device();
  if (device < 0) return wrong("cublasLtCreate without a context", UNINITIALISED);
  return add(handles, device, out, "cublasLt handles");
}

SHARED int cublasLtDestroy(void *handle) {
  if (int code = fault("cublasLtDestroy")) return code;
  return drop(handles, handle, "cublasLt handles");
}

SHARED int cublasLtMatmulDescCreate(void **out, int compute, int scale) {
  if (int code = fault("cublasLtMatmulDescCreate")) return code;
  Operation operation;
  operation.compute = compute;
  operation.scale = scale;
  return add(operations, operation, out, "operations");
}

SHARED int cublasLtMatmulDescSetAttribute(void *handle, int attribute, const void *value, size_t size) {
  if (int code = fault("cublasLtMatmulDescSetAttribute")) return code;
  Lock hold(lock);
  Operation *const operation = find(operations, handle);
  if (!operation || !value) return wrong("an attribute of no operation");
  auto take = [&](auto *into) {
    if (size != sizeof *into) return wrong("attribute " + std::to_string(attribute) + " of " + std::to_string(size) + " bytes");
    memcpy(into, value, size);
    return int(OK);
  };
  switch (attribute) {
  case 3: return take(&operation->transposed[0]);
  case 4: return take(&operation->transposed[1]);
  case 7: return take(&operation->epilogue);
  case 8: return take(&operation->bias);
  default: return wrong("attribute " + std::to_string(attribute) + " of an operation is unknown here");
  }
}

SHARED int cublasLtMatmulDescDestroy(void *handle) {
  if (int code = fault("cublasLtMatmulDescDestroy")) return code;
  return drop(operations, handle, "operations");
}

SHARED int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  if (int code = fault("cublasLtMatrixLayoutCreate")) return code;
  return add(layouts, Layout{type, rows, columns, ld}, out, "layouts");
}

SHARED int cublasLtMatrixLayoutDestroy(void *handle) {
  if (int code = fault("cublasLtMatrixLayoutDestroy")) return code;
  return drop(layouts, handle, "layouts");
}

SHARED int cublasLtMatmulPreferenceCreate(void **out) {
  if (int code = fault("cublasLtMatmulPreferenceCreate")) return code;
  return add(preferences, Preference(), out, "preferences");
}

SHARED int cublasLtMatmulPreferenceSetAttribute(void *handle, int attribute, const void *value, size_t size) {
  if (int code = fault("cublasLtMatmulPreferenceSetAttribute")) return code;
  Lock hold(lock);
  Preference *const preference = find(preferences, handle);
  if (!preference || attribute != 1 || size != sizeof preference->workspace) return wrong("an attribute of a preference");
  memcpy(&preference->workspace, value, size);
  return OK;
}

SHARED int cublasLtMatmulPreferenceDestroy(void *handle) {
  if (int code = fault("cublasLtMatmulPreferenceDestroy")) return code;
  return drop(preferences, handle, "preferences");
}

SHARED int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                          int wanted, Found *found, int *count) {
  if (int code = fault("cublasLtMatmulAlgoGetHeuristic")) return code;
  Lock hold(lock);
  *count = 0;
  const Preference *const within = find(preferences, preference);
  if (!find(handles, handle) || !within || wanted < 1) return wrong("a heuristic without a handle, a preference or room");
  Problem problem;
  if (int code = look_up(&problem, operation, a, b, c, d)) return code;
  if (int code = check(problem)) return code;
  // The pointer's value tells how it will be aligned.
  if (problem.operation.bias % 16) return wrong("a bias at an odd address", UNSUPPORTED);
  const size_t workspace = within->workspace < WORKSPACE ? 0 : WORKSPACE;
  *found = {algorithm_for(problem, workspace), workspace, OK, 1.0f, {}};
  *count = 1;
  return OK;
}

SHARED int cublasLtMatmul(void *handle, void *operation, const float *alpha, const void *a, void *a_layout, const void *b,
                          void *b_layout, const float *beta, const void *c, void *c_layout, void *d, void *d_layout,
                          const Algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
  if (int code = fault("cublasLtMatmul")) return code;
  Lock hold(lock);
  const int *const device = find(handles, handle);
  if (!device) return wrong("a product without a handle", UNINITIALISED);
  if (*device != stand_in::current_device()) return wrong("a product on another device than its handle's");
  Problem problem;
  if (int code = look_up(&problem, operation, a_layout, b_layout, c_layout, d_layout)) return code;
  if (int code = check(problem)) return code;
  if (!algorithm) return wrong("a product without an algorithm is not known here", UNSUPPORTED);
  const Algorithm expected = algorithm_for(problem, algorithm->data[1]);
  if (memcmp(&expected, algorithm, sizeof expected) != 0) return wrong("an algorithm of another problem");
  if (workspace_bytes < algorithm->data[1]) return wrong("a workspace that is too small");
  auto at = [](const void *pointer) { return reinterpret_cast<uint64_t>(pointer); };
  const struct {
    const char *name;
    uint64_t address, bytes;
  } operands[] = {{"A", at(a), problem.a.bytes()},
                  {"B", at(b), problem.b.bytes()},
                  {"C", at(c), problem.c.bytes()},
                  {"D", at(d), problem.d.bytes()},
                  {"the bias", problem.operation.epilogue == 4 ? problem.operation.bias : 0, problem.d.rows * 4},
                  {"the workspace", workspace_bytes ? at(workspace) : 0, workspace_bytes}};
  for (const auto &[name, address, bytes] : operands) {
    if (!address && (name[0] == 't')) continue;
    if (address % ALIGNED) return wrong(string(name) + " is not as aligned as the preference had it");
    if (!stand_in::usable(address, bytes)) return wrong(string(name) + " is not " + std::to_string(bytes) + " bytes of the device");
  }
  if (c != d && at(c) < at(d) + problem.d.bytes() && at(d) < at(c) + problem.c.bytes()) return wrong("C and D overlap");
  // Scalars are read at the call.
  const float scales[2] = {*alpha, *beta};
  const int of = *device;
  const int code = stand_in::enqueue(stream, "a product", [=] {
    return stand_in::touch(of, "a product", [&] {
      if (workspace_bytes) memset(workspace, 0xff, workspace_bytes);
      multiply(problem, scales[0], scales[1], at(a), at(b), at(c), at(d), problem.operation.bias);
    });
  });
  if (!code) stand_in::count("products");
  return code ? int(EXECUTION_FAILED) : int(OK);
}
