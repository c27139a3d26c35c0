// One small function a task makes an item of a line; the table at the end names them.
#include "runtime/cli/task_data.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "convert/json_file.h"
#include "format/error.h"
#include "format/utf8.h"

namespace pith::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// A file's lines, without their ends. An empty line at the very end does not count.
struct Lines {
  std::string path;
  std::vector<std::string> lines;

  std::string where(size_t i) const { return fmt::format("{}:{}", path, i + 1); }
};

Lines read_lines(const std::string& path) {
  const std::string text = read_text_file(path);
  if (text.starts_with("BZh") || text.starts_with("PK\x03\x04") || text.starts_with("\x1f\x8b"))
    throw_error(ErrorCode::kFormat, "{}: compressed; extract it first (bunzip2, unzip, gunzip)", path);
  Lines out{path, {}};
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string& line = out.lines.emplace_back(text, begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if (!is_valid_utf8(line))
      throw_error(ErrorCode::kFormat, "{}: not UTF-8", out.where(out.lines.size() - 1));
    begin = end + 1;
  }
  if (out.lines.empty()) throw_error(ErrorCode::kFormat, "{}: empty, expected at least one item", path);
  return out;
}

// A JSON object of one line, with typed access.
class Record {
 public:
  Record(const Lines& lines, size_t i) : where_(lines.where(i)), json_(parse_json(lines.lines[i], where_)) {
    if (!json_.is_object())
      throw_error(ErrorCode::kFormat, "{}: a JSON {}, expected an object", where_, json_.type_name());
  }
  const std::string& where() const { return where_; }
  std::string text(const char* key) const { return as_text(value(key), key); }
  std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> out;
    for (const Json& element : array(key)) out.push_back(as_text(element, key));
    return out;
  }
  // The first number of a list of indices.
  uint32_t index(const char* key, size_t n) const {
    const Json& list = array(key);
    if (list.empty() || !list[0].is_number_unsigned() || list[0].get<uint64_t>() >= n)
      throw_error(ErrorCode::kFormat, "{}: '{}' is {}, expected a list of a number below {}", where_, key,
                  shown(list), n);
    return list[0].get<uint32_t>();
  }

 private:
  // The start of a value, for a message.
  static std::string shown(const Json& value) {
    const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() > 60 ? text.substr(0, 57) + "..." : text;
  }
  const Json& value(const char* key) const {
    const auto found = json_.find(key);
    if (found == json_.end()) throw_error(ErrorCode::kFormat, "{}: '{}' is missing", where_, key);
    return *found;
  }
  const Json& array(const char* key) const {
    const Json& list = value(key);
    if (!list.is_array())
      throw_error(ErrorCode::kFormat, "{}: '{}' is {}, expected a list", where_, key, shown(list));
    return list;
  }
  std::string as_text(const Json& element, const char* key) const {
    if (!element.is_string() || element.get_ref<const std::string&>().empty())
      throw_error(ErrorCode::kFormat, "{}: '{}' holds {}, expected a text that is not empty", where_, key,
                  shown(element));
    return element.get<std::string>();
  }

  std::string where_;
  Json json_;
};

uint32_t n_chars(std::string_view text) {
  return static_cast<uint32_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

TaskItem choice(const std::string& context, const std::vector<std::string>& answers, uint32_t right,
                const std::string& where) {
  TaskItem item;
  for (const std::string& answer : answers) item.requests.push_back({context, " " + answer, n_chars(answer)});
  item.answer = right;
  item.where = where;
  return item;
}

TaskItem hellaswag_item(const Lines& lines, size_t first) {
  constexpr size_t kLines = 6, kEndings = kLines - 2;
  if (first + kLines > lines.lines.size())
    throw_error(ErrorCode::kFormat, "{}: {} lines are left, expected {}: context, label, {} endings",
                lines.where(first), lines.lines.size() - first, kLines, kEndings);
  for (size_t i = 0; i < kLines; ++i)
    if (lines.lines[first + i].empty())
      throw_error(ErrorCode::kFormat, "{}: empty, expected a text", lines.where(first + i));
  const std::string& label = lines.lines[first + 1];
  if (label.size() != 1 || label[0] < '0' || label[0] >= static_cast<char>('0' + kEndings))
    throw_error(ErrorCode::kFormat, "{}: '{}', expected the number of an ending, 0 to {}",
                lines.where(first + 1), label.substr(0, 60), kEndings - 1);
  const auto endings = lines.lines.begin() + static_cast<ptrdiff_t>(first + 2);
  return choice(lines.lines[first], {endings, endings + kEndings}, static_cast<uint32_t>(label[0] - '0'),
                lines.where(first));
}

TaskItem arc_item(const Record& record) {
  const std::vector<std::string> options = record.texts("options");
  if (options.size() < 2)
    throw_error(ErrorCode::kFormat, "{}: {} options, expected at least 2", record.where(), options.size());
  return choice(fmt::format("Question: {}\nAnswer:", record.text("centerpiece")), options,
                record.index("correct_options_idx", options.size()), record.where());
}

// Each option stands where the blank is; what is scored comes after it and is the same for both.
TaskItem winogrande_item(const Record& record) {
  const std::string sentence = record.text("centerpiece");
  const std::vector<std::string> options = record.texts("options");
  const size_t blank = sentence.find('_'), n_blanks = std::count(sentence.begin(), sentence.end(), '_');
  if (n_blanks != 1)
    throw_error(ErrorCode::kFormat, "{}: {} blanks '_' in 'centerpiece', expected 1", record.where(),
                n_blanks);
  if (options.size() != 2)
    throw_error(ErrorCode::kFormat, "{}: {} options, expected 2", record.where(), options.size());
  std::string rest = sentence.substr(blank + 1);
  rest.erase(0, rest.find_first_not_of(' '));
  if (rest.empty())
    throw_error(ErrorCode::kFormat, "{}: nothing after the blank '_', expected a text to score",
                record.where());
  TaskItem item;
  for (const std::string& option : options)
    item.requests.push_back({sentence.substr(0, blank) + option, " " + rest, n_chars(rest)});
  item.answer = record.index("correct_options_idx", 2);
  item.where = record.where();
  return item;
}

TaskItem piqa_item(const Record& record, const Lines& labels, size_t i) {
  if (labels.lines[i] != "0" && labels.lines[i] != "1")
    throw_error(ErrorCode::kFormat, "{}: '{}', expected 0 or 1", labels.where(i),
                labels.lines[i].substr(0, 60));
  return choice(fmt::format("Question: {}\nAnswer:", record.text("goal")),
                {record.text("sol1"), record.text("sol2")}, labels.lines[i] == "1", record.where());
}

TaskItem lambada_item(const Record& record) {
  const std::string text = record.text("text");
  const size_t blank = text.rfind(' ');
  if (blank == std::string::npos || blank == 0 || blank + 1 == text.size())
    throw_error(ErrorCode::kFormat, "{}: 'text' does not end with a blank and a word", record.where());
  return choice(text.substr(0, blank), {text.substr(blank + 1)}, 0, record.where());
}

TaskItem blimp_item(const Record& record, Task& task) {
  TaskItem item;
  for (const char* key : {"sentence_good", "sentence_bad"}) {
    const std::string sentence = record.text(key);
    item.requests.push_back({"", sentence, n_chars(sentence)});
  }
  item.where = record.where();
  const std::string phenomenon = record.text("UID");
  if (task.groups.empty() || task.groups.back() != phenomenon) {
    const auto known = std::find(task.groups.begin(), task.groups.end(), phenomenon);
    if (known != task.groups.end()) {
      item.group = static_cast<uint32_t>(known - task.groups.begin());
      return item;
    }
    task.groups.push_back(phenomenon);
  }
  item.group = static_cast<uint32_t>(task.groups.size() - 1);
  return item;
}

// valid.jsonl -> valid-labels.lst
std::string labels_path(const std::string& path) {
  const fs::path file(path);
  return (file.parent_path() / (file.stem().string() + "-labels.lst")).string();
}

// One a line for each item. Another number is that of another split.
Lines read_labels(const Lines& items) {
  const std::string path = labels_path(items.path);
  if (!file_exists(path))
    throw_error(ErrorCode::kIo, "{}: no such file, expected the labels of {} beside it", path, items.path);
  Lines labels = read_lines(path);
  if (labels.lines.size() != items.lines.size())
    throw_error(ErrorCode::kFormat, "{}: {} labels, expected {}, one for each item of {}", labels.path,
                labels.lines.size(), items.lines.size(), items.path);
  return labels;
}

struct TaskKind {
  const char* name;
  size_t n_lines;  // of an item
  bool normalizes, completes, has_labels;
  TaskItem (*item)(const Lines& lines, const Lines& labels, size_t first, Task& task);
};

const TaskKind kTasks[] = {
    {"hellaswag", 6, true, false, false,
     [](const Lines& lines, const Lines&, size_t i, Task&) { return hellaswag_item(lines, i); }},
    {"arc-easy", 1, true, false, false,
     [](const Lines& lines, const Lines&, size_t i, Task&) { return arc_item(Record(lines, i)); }},
    {"arc-challenge", 1, true, false, false,
     [](const Lines& lines, const Lines&, size_t i, Task&) { return arc_item(Record(lines, i)); }},
    {"winogrande", 1, false, false, false,
     [](const Lines& lines, const Lines&, size_t i, Task&) { return winogrande_item(Record(lines, i)); }},
    {"piqa", 1, true, false, true,
     [](const Lines& lines, const Lines& labels, size_t i, Task&) {
       return piqa_item(Record(lines, i), labels, i);
     }},
    {"lambada", 1, false, true, false,
     [](const Lines& lines, const Lines&, size_t i, Task&) { return lambada_item(Record(lines, i)); }},
    {"blimp", 1, false, false, false,
     [](const Lines& lines, const Lines&, size_t i, Task& task) {
       return blimp_item(Record(lines, i), task);
     }},
};

// The file, or a folder's *.jsonl in the order of their names.
std::vector<std::string> files_of(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return {path};
  std::vector<std::string> files;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error))
    if (entry->path().extension() == ".jsonl") files.push_back(entry->path().string());
  if (error) throw_error(ErrorCode::kIo, "{}: cannot list: {}", path, error.message());
  if (files.empty()) throw_error(ErrorCode::kFormat, "{}: a folder without a .jsonl file", path);
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const TaskKind& kind : kTasks) names.push_back(kind.name);
  return names;
}

Task read_task(const std::string& name, const std::string& path, uint64_t n_limit) {
  const auto kind = std::find_if(std::begin(kTasks), std::end(kTasks),
                                 [&](const TaskKind& candidate) { return candidate.name == name; });
  if (kind == std::end(kTasks))
    throw_error(ErrorCode::kInvalidArgument, "--task {}: expected one of {}", name,
                fmt::join(task_names(), ", "));
  Task task;
  task.name = name;
  task.normalizes = kind->normalizes;
  task.completes = kind->completes;
  if (name != "blimp") task.groups.push_back(name);
  for (const std::string& file : name == "blimp" ? files_of(path) : std::vector{path}) {
    const Lines lines = read_lines(file);
    const Lines labels = kind->has_labels ? read_labels(lines) : Lines{};
    uint64_t n_items = 0;
    for (size_t i = 0; i < lines.lines.size() && (n_limit == 0 || n_items < n_limit);
         i += kind->n_lines, ++n_items)
      task.items.push_back(kind->item(lines, labels, i, task));
  }
  return task;
}

}  // namespace pith::cli
