#pragma once

#include <CLI/App.hpp>

namespace shortconv::tools {

// Each adds one subcommand, whose callback does the work and throws CommandError when it fails.
void add_info_command(CLI::App& app);
void add_verify_command(CLI::App& app);
void add_replay_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_costs_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_doctor_command(CLI::App& app);

}  // namespace shortconv::tools
