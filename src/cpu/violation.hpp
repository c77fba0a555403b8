#pragma once

#include "shortconv/plan.hpp"

namespace shortconv::cpu {

/// Fills the report of the checked mode. Allocates nothing.
void report_violations(const Problem& p, const Addresses& at);

}  // namespace shortconv::cpu
