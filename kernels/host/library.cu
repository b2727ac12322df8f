// All kernels in one translation unit, for the host.
#include "../attention.cu"
#include "../gemm.cu"
#include "../layer.cu"
#include "../lora.cu"
#include "../nll.cu"
#include "../nll90.cu"
#include "../prune.cu"
#include "../topk.cu"
