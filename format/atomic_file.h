// A small file that is either what it was or complete: written as PATH.part under a lock, fsynced, renamed to PATH.
//
// One writer per PATH at a time, also across processes; a second one gets Error(kIo). Not thread safe.
#pragma once
#include <sys/types.h>

#include <string>
#include <string_view>

#include "format/io.h"

namespace pith {

// Opens PATH for reading and writing, created with `mode` when absent, and locks it until it is closed. One that is there is taken
// from others where `mode` gives them nothing. Throws Error(kIo) when another process holds the lock.
File open_locked(Io& io, const std::string& path, mode_t mode = 0666);

// Flushes the folder of `path`, so that a rename in it outlives a power cut. File systems that cannot are passed over.
void sync_folder_of(Io& io, const std::string& path);

class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path, mode_t mode = 0666,
                      Io& io = Io::system());  // an empty PATH.part
  ~AtomicFile();                               // without commit(), removes PATH.part; PATH is as it was
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const File& file() const { return part_; }  // what is written here
  // fsync, rename, fsync of the folder. Should the last fail, the file is in place and whole.
  void commit();

 private:
  Io& io_;
  const std::string path_, part_path_;
  File part_;
  bool done_ = false;
};

// The same for content that is there as a whole.
void write_atomically(const std::string& path, std::string_view content, mode_t mode = 0666);

}  // namespace pith
