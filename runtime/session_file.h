// A session's timeline and cache as a file.
//
//         0        2        4        6        8        10       12       14       16
//    0    | magic                             | version         | header_size     |
//   16    | file_size                         | model fingerprint                 |
//   32    | n_tokens        | n_layers        | n_kv_heads      | head_dim        |
//   48    | kv_type         | zero            | payload checksum                  |
//   64    | zero                                                                  |
//  ...    | zero                              | checksum of bytes 0..119          |
//  128    int32 ids [n_tokens], then each layer's cache as Backend::read_kv gives it
//
// Checksums are XXH3-64. The file is written beside its name as .part and renamed when it is complete.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/backend.h"

namespace pith {

void save_session(const std::string& path, const Model& model, KvType kv, const std::vector<int32_t>& tokens,
                  const Backend& backend);

// Checks everything before the backend is touched, then fills its cache and returns the timeline. Throws Error(kIo), or
// kFormat naming the first thing that is wrong.
std::vector<int32_t> load_session(const std::string& path, const Model& model, KvType kv, uint32_t n_ctx,
                                  Backend& backend);

}  // namespace pith
