// Writing a .pith file: tensors stream out one by one, metadata and directory follow, the header comes last.
//
// The file is written as PATH.part and renamed to PATH by finish() after fsync, so PATH either does not exist,
// or is what it was, or is complete. Only a pith file, or an empty one, is ever replaced. The header of an unfinished .part is
// zero, so that it does not open, except while preview() has it tried.
//
// Resume: PATH.part.journal has one record per finished tensor, each with a checksum, bound to a caller-given
// fingerprint of source and options. A new Writer reads it, verifies the tensors' data and continues after the
// last whole one; the finished file has the same bytes as one written in one go. What a run with another fingerprint has
// finished is dropped on demand only.
//
// One Writer per PATH at a time, also across processes (a lock on the .part). Not thread safe. Throws
// Error(kIo) naming path and cause (no space left, permission, ...), kInvalidArgument for a bad name or size, and
// for what another job has left.
// After a failed call the Writer is as before it: the caller may free space and repeat the call, or give up.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "format/container.h"
#include "format/metadata.h"

namespace pith {

class Writer {
 public:
  // What becomes of a .part that is there. kContinue: one of the same job is continued (n_resumed() > 0 then), another job's
  // refused when it has a tensor. kReplace: any job's is replaced.
  enum class Unfinished { kContinue, kReplace };

  // Starts PATH.part. job: identifies source and options.
  Writer(const std::string& path, uint64_t job, Unfinished unfinished, Io& io = Io::system());
  Writer(const std::string& path, uint64_t job, Io& io = Io::system())
      : Writer(path, job, Unfinished::kContinue, io) {}
  ~Writer();  // keeps .part and journal after an interruption (they are the resume state)
  Writer(Writer&&) noexcept;

  size_t n_resumed() const;               // tensors already on disk
  bool has(std::string_view name) const;  // among them?

  // Plain tensors: data is n_rows * n_cols elements, row-major. Order of calls is the order in the file.
  void add(const std::string& name, TensorKind kind, uint32_t n_rows, uint32_t n_cols,
           std::span<const uint8_t> data);
  void add(const std::string& name, const q24::Unpacked& tensor);
  // The bytes of a tensor that is there: out has its size in the file (padding included).
  void read(std::string_view name, std::span<uint8_t> out) const;
  // A small blob kept in the journal with a tensor (the converter keeps quality figures there), so that a
  // resumed run knows it again. Noted before the tensor is added, the two are journaled as one: whoever finds
  // the tensor after an interruption finds the note. Noted after, an interruption between the two leaves the
  // tensor without it.
  void note(const std::string& name, const std::string& text);
  std::string noted(const std::string& name) const;  // "" when absent

  // Makes the .part a whole file for as long as `use` runs (it gets the .part's path), so that a model can be tried before its
  // metadata is final. Afterwards the .part does not open again, also when `use` throws.
  void preview(const Metadata& metadata, const std::function<void(const std::string& part_path)>& use);

  // Writes metadata, directory and header, fsyncs, renames, fsyncs the folder, deletes the journal. Should the folder's
  // fsync fail (the last thing that can), the file is in place and whole, but might not outlive a power cut.
  void finish(const Metadata& metadata);
  void discard();  // removes .part and journal

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pith
