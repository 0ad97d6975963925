// SPDX-License-Identifier: Apache-2.0
//
// Horovod 0.28.1 includes this header in one file, xla_mpi_ops.cc, and TensorFlow 2.19 and later no longer have it.
// The folder stands at the end of CPLUS_INCLUDE_PATH, so that TensorFlow's own header is found where there is one.
#if HAVE_CUDA
#include <cuda_runtime.h>

#include "xla/stream_executor/stream.h"

namespace stream_executor::gpu {
// Horovod's mpi_ops.cc declares this function itself; TensorFlow 2.19 and later do not export it.
cudaStream_t AsGpuStreamValue(Stream* stream) {
  return static_cast<cudaStream_t>(stream->platform_specific_handle().stream);
}
}  // namespace stream_executor::gpu
#endif

// Skips the rest of xla_mpi_ops.cc: all-reduce inside XLA, which is off unless HOROVOD_ENABLE_XLA_OPS=1.
#undef HAVE_GPU
