// A stream of CUDA without its headers.
#pragma once

struct CUstream_st;

namespace pith::cuda {

using StreamHandle = CUstream_st*;  // cudaStream_t

}  // namespace pith::cuda
