#include <fcntl.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <sstream>
#include <stdexcept>

#include "commands.hpp"
#include "common/error.hpp"
#include "common/host.hpp"
#include "common/output_file.hpp"
#include "common/text.hpp"

namespace {

using namespace shortconv::tools;

// The message may contain text of a file, of an option or of the system.
int fail(int exit_code, const char* message) {
  std::fprintf(stderr, "shortconv: %s\n", printable_lines(message).c_str());
  return exit_code;
}

// If a standard stream is closed, the next opened file would get its number, and messages would be
// written to that file. /dev/null takes the place of closed streams, opened so that reading from 0
// and writing to 1 and 2 fail.
void occupy_closed_streams() {
  for (int number = STDIN_FILENO; number <= STDERR_FILENO; ++number) {
    if (fcntl(number, F_GETFD) != -1) continue;
    if (open("/dev/null", number == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
  }
}

void run(int argc, char** argv) {
  CLI::App app{"The short causal depthwise convolution of linear-attention layers, on its own."};
  app.name("shortconv");
  app.set_version_flag("--version", "shortconv " + library_version());
  app.require_subcommand(1);
  add_info_command(app);
  add_verify_command(app);
  add_replay_command(app);
  add_bench_command(app);
  add_costs_command(app);
  add_report_command(app);
  add_doctor_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    std::ostringstream text;
    (void)app.exit(help_or_version, text, text);
    write_stdout(text.view());
  }
}

}  // namespace

int main(int argc, char** argv) {
  occupy_closed_streams();
  // write() returns an error for a closed pipe and for a file beyond its limit.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    run(argc, argv);
  } catch (const CLI::ParseError& error) {
    return fail(kExitUsage, error.what());
  } catch (const CommandError& error) {
    return fail(error.exit_code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(kExitFailed, "there is not enough memory");
  } catch (const std::length_error&) {  // more than any memory could hold
    return fail(kExitFailed, "there is not enough memory");
  } catch (const std::exception& error) {
    return fail(kExitFailed, error.what());
  }
  if (std::fclose(stdout) != 0) return fail(kExitFailed, "standard output: cannot be written");
  return 0;
}
