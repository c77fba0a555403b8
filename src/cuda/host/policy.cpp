#include "cuda/host/policy.hpp"

#include "core/check.hpp"

namespace shortconv::cuda {

const TuningPolicy& policy_for(const DeviceProperties&) { return kHopperPolicy; }

std::string to_string(const TuningPolicy& p) {
  return concat("wave ", p.wave_blocks, " blocks, start blocks take all up to ",
                p.start_blocks_take_all_waves, " waves, short sequences below ",
                p.short_sequence_tokens, " tokens from ", p.short_sequence_warps,
                " warps, in small blocks below ", p.small_shortest_sequence_warps, " or ",
                p.small_short_sequence_warps, " warps, small tiles up to ", p.small_tile_waves,
                " waves, at least ", p.min_start_rounds, " start rounds, small decode up to ",
                p.small_decode_elements, " elements or below ", p.decode_wave_percent,
                "% of waves of ", p.decode_wave_blocks,
                " blocks, decode of 64 and 128 threads up to ", p.decode_elements_64_threads,
                " and ", p.decode_elements_128_threads, " elements, last ", p.pdl_last_blocks,
                " blocks launch dependents, drafts from ", p.pdl_drafts_from,
                " blocks, groups in rounds from ", p.group_rounds_waves, " waves, general ",
                p.general_rows, " rows and ", p.general_blocks, " blocks");
}

}  // namespace shortconv::cuda
