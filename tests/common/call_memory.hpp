// Where the random calls of draft_case.hpp and epilogue_case.hpp take their memory from, and how
// they are made: the one thing that differs between the tests on the host and those on a GPU.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "shortconv/plan.hpp"

namespace shortconv::test {

struct CallMemory {
  std::function<void*(std::size_t)> allocate;  // freed by whoever made this
  std::function<Status(const ForwardArgs&)> run_and_wait;
  Device device;
};

class HostMemory {
 public:
  HostMemory(BackendId backend, std::int32_t threads)
      : memory_{.allocate =
                    [this](std::size_t bytes) {
                      blocks_.emplace_back(bytes + 64);
                      return static_cast<void*>(blocks_.back().data());
                    },
                .run_and_wait =
                    [backend, threads](const ForwardArgs& args) {
                      ForwardArgs chosen = args;
                      chosen.options.backend = backend;
                      chosen.options.threads = threads;
                      return forward(chosen);
                    },
                .device = {}} {}
  [[nodiscard]] const CallMemory& memory() const { return memory_; }

 private:
  std::vector<std::vector<char>> blocks_;
  CallMemory memory_;
};

}  // namespace shortconv::test
