// A session's timeline and cache as a file.
//
//         0        2        4        6        8        10       12       14       16
//    0    | magic                             | version         | header_size     |
//   16    | file_size                         | model fingerprint                 |
//   32    | n_tokens        | n_layers        | n_kv_heads      | head_dim        |
//   48    | kv_type         | n_ctx           | payload checksum                  |
//   64    | zero                                                                  |
//  ...    | zero                              | checksum of bytes 0..119          |
//  128    int32 ids [n_tokens], then each layer's cache as Backend::read_kv gives it
//
// n_ctx is the context of the session that saved it where the model's RoPE angles depend on it (RopeSpec), else 0: the cache holds
// turned keys, which only a session of the same angles can go on from. Checksums are XXH3-64. The file is put in place when it is complete (format/atomic_file.h).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/backend.h"

namespace pith {

// options: resolved. Mode 0600. Throws kInvalidArgument when something else than a session's file is there.
void save_session(const std::string& path, const Model& model, const SessionOptions& options,
                  const std::vector<int32_t>& tokens, const Backend& backend);

// The whole of it is in memory and checked before the session changes.
struct SavedSession {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> cache;  // [n_layers, kv_layer_bytes()]
};
// Throws Error(kIo), kContextFull when the file holds more tokens than the context, kInvalidArgument when its session had another
// cache type or other RoPE angles, or kFormat naming the first thing that is wrong.
SavedSession read_session(const std::string& path, const Model& model, const SessionOptions& options);

}  // namespace pith
