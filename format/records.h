// The fixed-size records of a .pith file as they lie on disk, and the rules that reader and writer share.
// FORMAT.md is normative; the offsets there are these structs'. Internal to format/ and its tests.
#pragma once
#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "format/container.h"

namespace pith {

static_assert(std::endian::native == std::endian::little, "pith files are little-endian and used in place");

constexpr uint64_t kFileAlign =
    128;  // of tensors, metadata and directory: a constant, never read from a file
// As PNG's: the high bit finds 7-bit transfers, CR LF finds newline conversions, ^Z ends a listing on DOS.
constexpr std::array<uint8_t, 8> kMagic = {0x89, 'P', 'I', 'T', 'H', 0x0d, 0x0a, 0x1a};
constexpr uint16_t kMajor = 1;
constexpr uint16_t kMinor = 0;
constexpr uint64_t kKnownFeatures = 0;  // required-feature bits this reader implements

//         0        2        4        6        8        10       12       14       16
//    0    | magic                             | major  | minor  | header_size     |
//   16    | file_size                         | required_features                 |
//   32    | optional_features                 | metadata_offset                   |
//   48    | metadata_size                     | directory_offset                  |
//   64    | directory_size                    | n_tensors       | reserved0       |
//   80    | metadata_checksum                 | directory_checksum                |
//   96    | reserved1                                                             |
//  112    | reserved1                         | header_checksum (of bytes 0..119) |
struct HeaderRecord {
  std::array<uint8_t, 8> magic;
  uint16_t major, minor;
  uint32_t header_size;  // 128
  uint64_t file_size;
  uint64_t required_features;                 // an unknown bit: the reader refuses the file
  uint64_t optional_features;                 // an unknown bit: the reader goes on without
  uint64_t metadata_offset, metadata_size;    // size without the padding that follows
  uint64_t directory_offset, directory_size;  // likewise
  uint32_t n_tensors;
  uint32_t reserved0;
  uint64_t metadata_checksum, directory_checksum;
  std::array<uint64_t, 3> reserved1;
  uint64_t header_checksum;
};
static_assert(sizeof(HeaderRecord) == 128 && std::is_trivially_copyable_v<HeaderRecord>);

//    0    | name_offset     | name_size | k | g | n_rows          | n_cols          |    k kind, g group
//   16    | n_fine          | n_slots         | offset                              |
//   32    | size                              | checksum                            |
//   48    | reserved                                                                |
struct TensorRecord {
  uint32_t name_offset;  // from the first byte after the records
  uint16_t name_size;
  uint8_t kind;
  uint8_t group;  // 0 unless kind is q24; so are n_fine and n_slots
  uint32_t n_rows, n_cols, n_fine, n_slots;
  uint64_t offset, size;
  uint64_t checksum;
  std::array<uint64_t, 2> reserved;
};
static_assert(sizeof(TensorRecord) == 64 && std::is_trivially_copyable_v<TensorRecord>);

// Seed of a tensor's checksum: mixes in its name and place, so that bytes in the wrong place do not verify.
uint64_t tensor_seed(std::string_view name, uint64_t offset);
uint64_t header_checksum(const HeaderRecord& header);

// Bytes of a tensor's data region, a multiple of 128. Throws kFormat when kind or shape breaks a rule; the
// message begins with the field, not with the tensor's name.
uint64_t tensor_size(TensorKind kind, const q24::Shape& shape);
uint32_t element_size(TensorKind kind);  // plain kinds: 2 or 4

template <typename T>
std::span<const uint8_t> bytes_of(const T& record) {
  return {reinterpret_cast<const uint8_t*>(&record), sizeof record};
}

}  // namespace pith
