#include "reference/reference.hpp"

namespace shortconv {
namespace {

const auto plan = [](const auto&, PlanStorage&) { return Status(); };
const auto describe = [](const auto&, const PlanStorage&) { return std::string("fp64"); };

}  // namespace

extern const Backend kReferenceBackend{
    .id = BackendId::kReference,
    .device = DeviceType::kCpu,
    .info = [] { return BackendInfo{"reference", true, "fp64, one thread, for comparison only"}; },
    .forward = {.plan = plan, .run = reference::forward, .describe = describe},
    .commit = {.plan = plan, .run = reference::commit, .describe = describe},
    .backward = {.plan = plan, .run = reference::backward, .describe = describe},
    .grouped = {.plan = plan, .run = reference::grouped, .describe = describe},
    .grouped_backward = {.plan = plan, .run = reference::grouped_backward, .describe = describe},
    .l2_norm = reference::l2_norm,
    .delta_gates = reference::delta_gates,
    .block_snapshots = reference::block_snapshots,
    .tree_parents = reference::tree_parents,
};

}  // namespace shortconv
