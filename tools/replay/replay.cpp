#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/error.hpp"
#include "common/host.hpp"
#include "common/json_text.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "common/progress.hpp"
#include "common/text.hpp"
#include "core/thread_count.hpp"
#include "core/thread_pool.hpp"
#include "replay/report.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

// Outputs kept for the verification, of all schedules together; the longest and the shortest
// request are kept even if they exceed it.
constexpr std::int64_t kRecordingBytes = std::int64_t{2} << 30;

struct ReplayOptions {
  std::string requests;
  std::string preset;
  WorkloadLimits limits;

  std::string model = "qwen3-next-80b";
  std::string dtype = "bf16";
  std::string layers = "2";
  std::int64_t ranks = 1;

  SchedulerOptions scheduler;
  std::int64_t drafts = 0;
  std::string tree;
  std::optional<double> accept;
  std::int64_t prefix_slots = 1024;
  double shared = 0.5;
  std::string schedule = "flat";
  std::string compare;
  std::string backend = "auto";
  std::int32_t threads = 0;

  std::uint64_t seed = 1;
  std::int64_t check = 32;
  std::string json;
};

Workload load_workload(const ReplayOptions& options) {
  if (options.requests.empty() == options.preset.empty()) {
    throw CommandError(kExitUsage, "replay: give either --requests FILE or --preset gsm8k");
  }
  Workload workload =
      options.preset.empty() ? load_requests(options.requests) : preset_requests(options.preset);
  apply_limits(options.limits, workload);
  if (options.scheduler.prefix_block > 0) {
    share_prompts(options.shared, options.seed, workload);
  }
  return workload;
}

SchedulerOptions chosen_scheduler(const ReplayOptions& options) {
  SchedulerOptions scheduler = options.scheduler;
  scheduler.seed = options.seed;
  if (options.drafts > 0) {
    scheduler.tree = DraftTree(std::vector<std::int64_t>(options.drafts, 1));
  } else if (!options.tree.empty()) {
    scheduler.tree = parse_draft_tree("--tree", options.tree);
  }
  if (options.accept) {
    if (scheduler.tree.empty()) {
      throw CommandError(kExitUsage, "--accept: there are no drafts; expected --spec or --tree");
    }
    scheduler.accept = *options.accept;
  }
  if (scheduler.prefix_block > 0) scheduler.prefix_slots = options.prefix_slots;
  const bool verifies_prompts = scheduler.mixed && !scheduler.tree.empty();
  if (verifies_prompts && !scheduler.tree.is_chain()) {
    throw CommandError(kExitUsage,
                       "--tree: trees leave no final state, so a call cannot hold prompts as well; "
                       "expected no --mixed, or --spec");
  }
  if (verifies_prompts && scheduler.prefix_block > 0) {
    throw CommandError(kExitUsage,
                       "--prefix-cache: calls that verify drafts take no snapshots; expected no "
                       "--mixed, or no --spec");
  }
  return scheduler;
}

std::vector<Schedule> chosen_schedules(const ReplayOptions& options) {
  const auto known = capabilities().schedules;
  std::vector<Schedule> schedules{parse_name(known, "--schedule", options.schedule)};
  const std::vector<std::string> compared = split_commas(options.compare);
  if (compared.empty() && !options.compare.empty()) {
    throw CommandError(kExitUsage, fmt::format("--compare: {} names none; expected some of {}",
                                               in_quotes(options.compare), list_names(known)));
  }
  for (const std::string& text : compared) {
    const Schedule schedule = parse_name(known, "--compare", text);
    const bool is_new = std::find(schedules.begin(), schedules.end(), schedule) == schedules.end();
    if (is_new) schedules.push_back(schedule);
  }
  const bool only_flat = schedules == std::vector{Schedule::kFlat};
  if (options.scheduler.prefix_block > 0 && !only_flat) {
    throw CommandError(kExitUsage,
                       "--prefix-cache: schedule flat is the only one that takes snapshots; "
                       "expected no other in --schedule and --compare");
  }
  return schedules;
}

// Plans one row: finds out whether the backend takes these layers before any real work, and which
// one 'auto' is.
BackendInfo try_backend(const ReplaySetup& setup) {
  const LayerConfig& config = setup.config;
  const Device device = setup.device();
  const Buffer x(config.row_bytes());  // nothing is run, so any memory will do
  const Buffer out(config.row_bytes());
  ForwardArgs args;
  args.x = TensorRef::contiguous(x.data(), config.dtype, {1, config.channels}, device);
  args.out = TensorRef::contiguous(out.data(), config.dtype, {1, config.channels}, device);
  args.weight = TensorRef::contiguous(setup.weights[0].weight.data(), config.weight_dtype,
                                      {config.channels, config.width}, device);
  args.epilogue.activation = config.activation;
  args.options.backend = setup.backend;
  args.options.threads = setup.threads;
  Problem problem;
  Plan plan;
  require(make_problem(args, problem));
  require(make_plan(problem, plan));

  const std::string words = to_string(plan);  // "cpu: ..."
  for (BackendInfo& backend : backend_info()) {
    if (words.starts_with(backend.name)) return std::move(backend);
  }
  return {.name = name(setup.backend), .available = true, .detail = words};
}

void verify_runs(const ReplaySetup& setup, std::span<const StreamResult> runs,
                 Verification& verification) {
  std::int64_t rows = 0;
  for (const StreamResult& run : runs) {
    for (const Recording& recording : run.recordings) {
      rows += setup.requests[recording.request].tokens() - recording.first_token;
    }
  }
  Progress progress("verify", rows);
  for (const StreamResult& run : runs) {
    const std::int64_t before = verification.rows;
    verify_recordings(
        setup, run.recordings, [&](std::int64_t done) { progress.update(before + done); },
        verification);
  }
}

void replay(const ReplayOptions& options, std::vector<std::string> arguments) {
  check_writable(options.json, {&options.requests, 1});
  const Workload workload = load_workload(options);
  const Model& model = find_model(options.model);
  const DType dtype = parse_name(capabilities().dtypes, "--dtype", options.dtype);
  const LayerConfig config = configure(model, dtype, options.ranks, options.layers);
  const SchedulerOptions scheduler = chosen_scheduler(options);
  const std::vector<Schedule> schedules = chosen_schedules(options);
  const BackendId backend = parse_name(capabilities().backends, "--backend", options.backend);
  require_available(backend);

  const InputTable inputs(options.seed, config.dtype, config.channels);
  const std::vector<LayerWeights> weights = make_weights(options.seed, config);
  const ReplaySetup setup{
      .requests = workload.requests,
      .scheduler = scheduler,
      .config = config,
      .inputs = inputs,
      .weights = weights,
      .backend = backend,
      .threads = options.threads > 0 ? options.threads : available_threads(),
  };
  const BackendInfo backend_found = try_backend(setup);
  ReplayReport report{
      .arguments = std::move(arguments),
      .source = workload.source,
      .requests = std::ssize(workload.requests),
      .prompt_tokens = workload.prompt_tokens(),
      .output_tokens = workload.output_tokens(),
      .model = model.name,
      .ranks = options.ranks,
      .seed = options.seed,
      .config = config,
      .scheduler = scheduler,
      .backend = backend_found.name,
      .backend_detail = backend_found.detail,
      .threads = setup.threads,
      .host = setup.on_gpu() ? describe_host_and_gpu() : describe_host(),
      .outline = outline_stream(setup),
  };

  const std::int64_t recorded_bytes_per_token =
      std::ssize(recorded_layers(config)) * std::ssize(schedules) * config.row_bytes();
  const std::vector<std::int64_t> checked = choose_requests(
      workload.requests, options.check, options.seed, recorded_bytes_per_token, kRecordingBytes);
  {
    Progress progress("replay", report.prompt_tokens + report.output_tokens);
    report.runs = run_stream(setup, schedules, checked,
                             [&](std::int64_t tokens) { progress.update(tokens); });
  }
  report.verification.asked = std::min(options.check, report.requests);
  if (!checked.empty()) verify_runs(setup, report.runs, report.verification);

  const bool json_on_stdout = options.json == "-";
  if (!json_on_stdout) write_stdout(to_text(report));
  if (!options.json.empty()) write_output(options.json, dump_json(to_json(report), 2) + "\n");
  require_success(report.verification);
}

std::string model_list() {
  std::string text;
  for (const Model& model : models()) {
    text += fmt::format("  {:<17} {:>6} channels, width {}, {} layers: {}\n", model.name,
                        model.channels, model.width, model.layers, model.description);
  }
  return text;
}

constexpr const char* kDescription =
    "Run requests through a model's layers as a serving engine does; measure and verify";

constexpr const char* kFooter =
    "Turns requests into the calls that a serving engine with continuous batching makes (extend,\n"
    "draft extend, decode, mixed, verify, commit), sends them through the convolutions of a "
    "model's\n"
    "layers with one pool of states per layer, and measures every call. Then verifies requests of\n"
    "the run: outputs and final states bit for bit against one pass over the whole request, and\n"
    "outputs within the rounding bound of fp32 against fp64.\n"
    "\n"
    "Requests. A CSV file has a header with the columns ContextTokens and GeneratedTokens, as the\n"
    "Azure LLM inference traces do. JSON objects, one after the other or in arrays, have\n"
    "prompt_tokens and output_tokens, or question and answer (GSM8K), whose lengths are\n"
    "estimated: one token per 4 UTF-8 bytes, rounded up, at least one. --preset gsm8k ships the\n"
    "lengths of the 1319 questions and answers of GSM8K's test set by that rule. Requests are\n"
    "admitted in the order of the file, as fast as slots allow: arrival times are ignored, so the\n"
    "engine is always busy.\n"
    "\n"
    "Scheduling. While a prompt waits and a slot is free, a call takes prompt tokens up to "
    "--chunk\n"
    "(an extend; the last prompt is cut and goes on in the next call). Otherwise all running\n"
    "requests advance by one token (a decode), or by --draft tokens (a draft extend). With "
    "--mixed\n"
    "both share a call. Slots of finished requests are used again with their old contents.\n"
    "\n"
    "Drafts. With --spec K a step is speculative: the token known to come next and a chain of K\n"
    "drafts behind it go through the layers (a verify), which leave their states alone and keep\n"
    "the window after each row. A draft is accepted with probability --accept if the one before\n"
    "it was; a random choice by --seed stands in for a model. Accepted drafts are the request's\n"
    "own next tokens, all others are other rows. A step thus brings a request forward by 1 to\n"
    "K + 1 tokens: its first row is what the step before found after its last accepted row. Then\n"
    "one call writes the accepted windows of all layers to the slots (a commit). --tree 2,2\n"
    "verifies trees: so many drafts behind each row, level by level, of which at most one a level\n"
    "is accepted.\n"
    "\n"
    "Prefixes. With --prefix-cache BLOCK prompts leave a snapshot of the state after every BLOCK\n"
    "tokens in one of --prefix-slots slots, the least recently used first. The share --shared of\n"
    "the requests repeats the beginning of an earlier prompt and begins from the last snapshot of\n"
    "it that is there, at least one token before its end.\n"
    "\n"
    "Figures. Host time is what must be done before the first layer can start: checks, plan, and\n"
    "the lists that the schedule needs. Run time is one layer. GB/s counts inputs, outputs and\n"
    "states once each way. run/copy is the run time over the time of a copy that moves the same\n"
    "bytes with the same threads right after the call, through buffers that are in cache as far "
    "as\n"
    "they fit: median over calls spread through the run.\n"
    "\n"
    "On a GPU (--backend cuda). Host time is taken while the GPU is idle. block-list and\n"
    "sequence-grid need the lengths on the host, so theirs includes copying query_start_loc\n"
    "back, and for block-list sending the lists. Run time is time of the GPU: all layers of a\n"
    "call in one graph, from a cold cache, divided by their number. Launch is how long the\n"
    "launch of one layer keeps the host. The copy is a kernel, under the same conditions.\n"
    "\n"
    "Exit code: 0; 1 when the verification fails; 2 when the input or an option is wrong.\n";

constexpr const char* kExamples =
    "Examples:\n"
    "  shortconv replay --preset gsm8k\n"
    "  shortconv replay --preset gsm8k --compare block-list,sequence-grid --json result.json\n"
    "  shortconv replay --preset gsm8k --backend cuda --compare block-list,sequence-grid\n"
    "  shortconv replay --requests AzureLLMInferenceTrace_conv.csv --limit 500 --mixed\n"
    "  shortconv replay --preset gsm8k --model kimi-linear-48b --tp 4 --layers all --draft 4\n"
    "  shortconv replay --preset gsm8k --spec 3 --prefix-cache 16\n"
    "  shortconv replay --preset gsm8k --tree 2,2 --accept 0.6\n";

}  // namespace

void add_replay_command(CLI::App& app) {
  auto options = std::make_shared<ReplayOptions>();
  CLI::App* command = app.add_subcommand("replay", kDescription);
  command->footer(fmt::format("{}\nModels:\n{}\n{}", kFooter, model_list(), kExamples));

  const auto count = whole_number(1, kMostCount);
  const std::string requests = "Requests";
  auto* file =
      command->add_option("--requests", options->requests, "CSV or JSON; - is standard input")
          ->type_name("FILE")
          ->check(file_name())
          ->group(requests);
  command->add_option("--preset", options->preset, "Requests that come with the tool: gsm8k")
      ->type_name("NAME")
      ->group(requests)
      ->excludes(file);
  command->add_option("--limit", options->limits.requests, "Only the first N requests")
      ->type_name("N")
      ->check(count)
      ->group(requests);
  command
      ->add_option("--max-output", options->limits.output, "Cap on generated tokens of a request")
      ->type_name("N")
      ->check(whole_number(0, kMostCount))
      ->group(requests);

  const std::string layers = "Layers";
  command->add_option("--model", options->model, "One of the models below")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(layers);
  command->add_option("--tp", options->ranks, "Tensor parallel ranks the channels are divided by")
      ->type_name("N")
      ->check(count)
      ->capture_default_str()
      ->group(layers);
  command
      ->add_option("--layers", options->layers,
                   "How many of the model's layers to run, or 'all'; each does the same work")
      ->type_name("N")
      ->capture_default_str()
      ->group(layers);
  command
      ->add_option("--dtype", options->dtype,
                   "Of inputs, outputs and states: " + list_names(capabilities().dtypes))
      ->type_name("NAME")
      ->capture_default_str()
      ->group(layers);

  const std::string scheduling = "Scheduling";
  SchedulerOptions& scheduler = options->scheduler;
  command->add_option("--chunk", scheduler.chunk, "Prompt tokens of one call at most")
      ->type_name("N")
      ->check(count)
      ->capture_default_str()
      ->group(scheduling);
  command->add_option("--max-running", scheduler.max_running, "Requests in service at most")
      ->type_name("N")
      ->check(whole_number(1, 65536))
      ->capture_default_str()
      ->group(scheduling);
  command->add_flag("--mixed", scheduler.mixed, "Let prompts and running requests share calls")
      ->group(scheduling);
  auto* draft = command
                    ->add_option("--draft", scheduler.draft,
                                 "Tokens by which a step advances a request, all of them accepted")
                    ->type_name("K")
                    ->check(whole_number(1, 1024))
                    ->group(scheduling);

  const std::string serving = "Drafts and prefixes";
  auto* chain =
      command
          ->add_option("--spec", options->drafts, "Verify a chain of K drafts a step, and commit")
          ->type_name("K")
          ->check(whole_number(1, 64))
          ->excludes(draft)
          ->group(serving);
  command
      ->add_option("--tree", options->tree,
                   "The same for trees: drafts behind each row, level by level: 2,2")
      ->type_name("SHAPE")
      ->excludes(draft)
      ->excludes(chain)
      ->group(serving);
  command
      ->add_option("--accept", options->accept,
                   "Probability that a draft is accepted, if the one before it was")
      ->type_name("P")
      ->check(real_number(0, 1))
      ->default_str("0.7")
      ->group(serving);
  auto* prefixes = command
                       ->add_option("--prefix-cache", scheduler.prefix_block,
                                    "Keep the states of prompts after every BLOCK tokens")
                       ->type_name("BLOCK")
                       ->check(count)
                       ->group(serving);
  command->add_option("--prefix-slots", options->prefix_slots, "Slots for these states")
      ->type_name("N")
      ->check(whole_number(1, 1'000'000))
      ->needs(prefixes)
      ->capture_default_str()
      ->group(serving);
  command
      ->add_option("--shared", options->shared,
                   "Share of the requests that begin as an earlier one does")
      ->type_name("P")
      ->check(real_number(0, 1))
      ->needs(prefixes)
      ->capture_default_str()
      ->group(serving);

  const std::string running = "Running";
  command
      ->add_option(
          "--schedule", options->schedule,
          "How the work of a ragged call is found: " + list_names(capabilities().schedules))
      ->type_name("NAME")
      ->capture_default_str()
      ->group(running);
  command
      ->add_option("--compare", options->compare,
                   "Run the stream under these schedules too, separated by commas; all take turns "
                   "call by call; on a GPU also prints one table of them all")
      ->type_name("NAMES")
      ->group(running);
  command
      ->add_option("--backend", options->backend, "One of " + list_names(capabilities().backends))
      ->type_name("NAME")
      ->capture_default_str()
      ->group(running);
  command->add_option("--threads", options->threads, "0: as many as the library finds (default)")
      ->type_name("N")
      ->check(whole_number(0, kMaxThreads))
      ->capture_default_str()
      ->group(running);

  const std::string results = "Results";
  command
      ->add_option("--check", options->check,
                   "Requests to verify, the longest and the shortest first; fewer when their "
                   "outputs exceed 2 GiB; 0: none")
      ->type_name("N")
      ->check(whole_number(0, kMostCount))
      ->capture_default_str()
      ->group(results);
  command
      ->add_option("--seed", options->seed,
                   "Of inputs, weights, acceptance, shared prompts and the requests to verify")
      ->type_name("N")
      ->check(seed_number())
      ->capture_default_str()
      ->group(results);
  command
      ->add_option("--json", options->json,
                   "Write all figures to FILE; - is standard output, instead of the tables")
      ->type_name("FILE")
      ->check(file_name())
      ->group(results);

  command->callback([options, command] { replay(*options, given_arguments(*command)); });
}

}  // namespace shortconv::tools
