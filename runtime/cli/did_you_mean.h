// A guess at what was meant by a word that is not known.
#pragma once
#include <string>
#include <vector>

namespace pith::cli {

// The nearest of the candidates if it is near enough to be a slip, else "".
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// What pith has in place of another program's option, as the end of a sentence that begins with "pith": "calls it --tokens".
// "" if it is no such option, or what pith has is none of the candidates.
std::string our_name(const std::string& option, const std::vector<std::string>& candidates);

}  // namespace pith::cli
