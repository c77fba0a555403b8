#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shortconv::tools {

/// The rows that one step of speculative decoding sends through the layers for each request: the
/// token that is known to come next, which is row 0, and drafts of what may follow it. Rows are
/// numbered level by level.
class DraftTree {
 public:
  DraftTree() = default;  ///< no speculation

  /// How many drafts follow each row of a level, level by level: {1, 1, 1} is a chain of three,
  /// {2, 2} a tree of two drafts with two more behind each. Every number is at least 1.
  explicit DraftTree(std::vector<std::int64_t> children);

  [[nodiscard]] bool empty() const { return children_.empty(); }
  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t levels() const { return std::ssize(children_); }
  [[nodiscard]] bool is_chain() const { return rows_ == levels() + 1; }
  /// Of each row, -1 for row 0.
  [[nodiscard]] std::vector<std::int32_t> parents() const;
  /// "2,2"
  [[nodiscard]] std::string shape() const;

  /// The rows that hold what the request really goes on with: row 0, then at each level one draft
  /// with probability `accept`, any of its siblings as likely as another, until none is accepted.
  /// At most `most` rows, of which there is at least one.
  [[nodiscard]] std::vector<std::int32_t> accepted_rows(double accept, std::int64_t most,
                                                        std::uint64_t seed) const;

 private:
  std::vector<std::int64_t> children_;
  std::int64_t rows_ = 0;
};

/// "2,2" -> that tree. Throws CommandError naming `option`.
[[nodiscard]] DraftTree parse_draft_tree(const std::string& option, const std::string& shape);

}  // namespace shortconv::tools
