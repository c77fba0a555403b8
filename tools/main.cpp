#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "commands.hpp"
#include "common/error.hpp"
#include "common/host.hpp"

namespace {

int fail(int exit_code, const char* message) {
  std::fflush(stdout);
  std::fprintf(stderr, "shortconv: %s\n", message);
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace shortconv::tools;

  CLI::App app{"The short causal depthwise convolution of linear-attention layers, on its own."};
  app.name("shortconv");
  app.set_version_flag("--version", "shortconv " + library_version());
  app.require_subcommand(1);
  add_info_command(app);
  add_verify_command(app);
  add_replay_command(app);
  add_bench_command(app);
  add_report_command(app);
  add_doctor_command(app);

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    return fail(kExitUsage, error.what());
  } catch (const CommandError& error) {
    return fail(error.exit_code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(kExitFailed, "there is not enough memory");
  } catch (const std::exception& error) {
    return fail(kExitFailed, error.what());
  }
  if (std::fflush(stdout) != 0) return fail(kExitFailed, "the output could not be written");
  return 0;
}
