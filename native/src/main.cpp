// The policy as a command: what it is, whether it still decides as it did, and its decisions for recorded screens.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "golden.h"
#include "policy.h"

namespace {

struct Close {
    void operator()(policy *handle) const { policy_close(handle); }
    void operator()(std::FILE *file) const {
        if (file != stdin) std::fclose(file);
    }
};

using File = std::unique_ptr<std::FILE, Close>;

int fail(const std::string &message) {
    std::fprintf(stderr, "error: %s\n", message.c_str());
    return 1;
}

int fail(const std::string &what, policy_status status) { return fail(what + ": " + policy_message(status)); }

// Why a call of the C library has just failed.
int fail_of(const std::string &what) { return fail(what + ": " + std::strerror(errno)); }

// An error is raised, for `run` to tell.
void check(policy_status status) {
    if (status != POLICY_OK) throw std::runtime_error(std::string(policy_name()) + ": " + policy_message(status));
}

// An open policy, with room for its observations, and for the actions and values that it decides. A mask among the
// observations allows everything at first.
struct Decider {
    std::unique_ptr<policy, Close> handle;
    std::vector<std::vector<char>> observations, decided;

    Decider() {
        policy *opened = nullptr;
        check(policy_open(&opened));
        handle.reset(opened);
        const policy_array *inputs = nullptr, *outputs = nullptr;
        policy_inputs(&inputs);
        policy_outputs(&outputs);
        for (size_t i = 0; i < policy_observations(); ++i) {
            const bool is_mask = std::strcmp(inputs[i].dtype, "bool") == 0;
            given_.push_back(observations.emplace_back(inputs[i].bytes, static_cast<char>(is_mask)).data());
        }
        for (size_t i = 0; i < policy_action_outputs() + policy_values(); ++i) {
            made_.push_back(decided.emplace_back(outputs[i].bytes).data());
        }
    }
    void decide() {
        check(policy_decide(handle.get(), given_.data(), made_.data(), made_.data() + policy_action_outputs()));
    }

   private:
    std::vector<const void *> given_;
    std::vector<void *> made_;
};

size_t total(const std::vector<std::vector<char>> &arrays) {
    size_t bytes = 0;
    for (const auto &array : arrays) bytes += array.size();
    return bytes;
}

void print_arrays(const char *kind, size_t count, const policy_array *arrays) {
    for (size_t i = 0; i < count; ++i) {
        std::printf("%s %s %s[", kind, arrays[i].name, arrays[i].dtype);
        for (size_t d = 0; d < arrays[i].dimensions; ++d) {
            std::printf("%s%" PRId64, d == 0 ? "" : ", ", arrays[i].shape[d]);
        }
        std::printf("]\n");
    }
}

// A file beside the command itself or in a folder above: all instruction sets have one golden.bin, and all programs of the
// model folder one verdict.json.
std::string own_file(const char *name) {
    char path[4096];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
    const std::string whole(path, length < 0 ? 0 : static_cast<size_t>(length));
    const std::string folder = whole.substr(0, whole.rfind('/') + 1);
    for (const char *above : {"", "../", "../../"}) {
        const std::string found = folder + above + name;
        if (access(found.c_str(), F_OK) == 0) return found;
    }
    return folder + name;
}

// What the check has found of the model folder's programs, as it stands in the file.
void print_verdict() {
    const File file(std::fopen(own_file("verdict.json").c_str(), "r"));
    if (file == nullptr) std::printf("verdict none: there is no verdict.json in the model folder\n");
    char line[4096];
    while (file != nullptr && std::fgets(line, sizeof line, file.get()) != nullptr) std::printf("verdict %s", line);
}

int tell() {
    const policy_array *arrays = nullptr;
    const char *const *names = nullptr;
    std::printf("policy %s\nfacts %s\ninstructions %s\n", policy_name(), policy_facts(), policy_instructions());
    const size_t inputs = policy_inputs(&arrays);
    print_arrays("input", inputs, arrays);
    const size_t outputs = policy_outputs(&arrays);
    print_arrays("output", outputs, arrays);
    const size_t actions = policy_actions(&names);
    for (size_t i = 0; i < actions; ++i) std::printf("action %zu %s\n", i, names[i]);
    print_verdict();
    return 0;
}

int selftest(const std::string &path) {
    if (access(path.c_str(), R_OK) != 0) return fail_of(path);
    const Decider decider;
    size_t decisions = 0, rounded = 0;
    const policy_status status = policy_selftest_rounding(decider.handle.get(), path.c_str(), &decisions, &rounded);
    if (status == POLICY_FILE) return fail(path, status);
    const std::string after = decisions > 0 ? ", after " + std::to_string(decisions) + " decisions of " + path : "";
    if (status != POLICY_OK) return fail(policy_name() + after, status);
    std::printf("selftest %s: %zu golden decisions, all as they were", policy_name(), decisions);
    if (rounded > 0) std::printf(", %zu of them but for rounding", rounded);
    std::printf("\n");
    return 0;
}

template <typename Number>
void print_all(const char *data, size_t bytes) {
    for (size_t at = 0; at < bytes; at += sizeof(Number)) {
        Number number = 0;
        std::memcpy(&number, data + at, sizeof number);
        if constexpr (std::is_floating_point_v<Number>) {
            std::printf(" %.*g", std::numeric_limits<Number>::max_digits10, static_cast<double>(number));
        } else {
            std::printf(" %" PRId64, static_cast<int64_t>(number));
        }
    }
}

void print_numbers(const char *dtype, const std::vector<char> &data) {
    static const std::map<std::string, void (*)(const char *, size_t)> kinds = {
        {"float32", print_all<float>},  {"float64", print_all<double>}, {"int64", print_all<int64_t>},
        {"int32", print_all<int32_t>},  {"int16", print_all<int16_t>},  {"int8", print_all<int8_t>},
        {"uint8", print_all<uint8_t>},  {"bool", print_all<uint8_t>},
    };
    const auto found = kinds.find(dtype);
    if (found != kinds.end()) {
        found->second(data.data(), data.size());
    } else {
        std::printf(" (%s)", dtype);  // of 16 bits, for which C++20 has no type
    }
}

// The name of an action that is an index.
void print_name(const std::vector<char> &action) {
    const char *const *names = nullptr;
    const size_t count = policy_actions(&names);
    int64_t index = 0;
    if (count == 0 || action.size() != sizeof index) return;
    std::memcpy(&index, action.data(), sizeof index);
    const bool known = index >= 0 && static_cast<uint64_t>(index) < count;
    std::printf(" %s", known ? names[index] : "?");
}

// One decision's numbers as a line: the actions, the only one by name where it has one, and what they were chosen by.
void print_decision(uint64_t number, const std::vector<std::vector<char>> &decided) {
    const policy_array *outputs = nullptr;
    policy_outputs(&outputs);
    std::printf("%" PRIu64, number);
    for (size_t i = 0; i < decided.size(); ++i) {
        print_numbers(outputs[i].dtype, decided[i]);
        if (i == 0) print_name(decided[i]);
    }
    std::printf("\n");
}

// A file whose first bytes have been looked at.
class Stream {
   public:
    explicit Stream(const std::string &path) : file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb")) {
        if (file_ != nullptr) have_ = std::fread(first_, 1, sizeof first_, file_.get());
    }
    bool opened() const { return file_ != nullptr; }
    bool is_golden() const { return have_ == sizeof first_ && std::memcmp(first_, GOLDEN_MAGIC, have_) == 0; }
    // The rest of golden decisions.
    std::FILE *file() { return file_.get(); }
    // What comes next, the first bytes among it; fewer than asked for at the end.
    size_t read(std::vector<char> &target) {
        const size_t held = std::min(have_ - taken_, target.size());
        std::copy_n(first_ + taken_, held, target.data());
        taken_ += held;
        return held + std::fread(target.data() + held, 1, target.size() - held, file_.get());
    }

   private:
    File file_;
    char first_[sizeof GOLDEN_MAGIC - 1];
    size_t have_ = 0, taken_ = 0;
};

// Why a file gives less than it should.
int fail_of(const std::string &path, std::FILE *file, const std::string &otherwise) {
    return std::ferror(file) != 0 ? fail_of(path) : fail(path + ": " + otherwise);
}

std::string cut_off(uint64_t number, size_t have, size_t size) {
    return "observation " + std::to_string(number) + " is cut off: " + std::to_string(have) + " bytes of " +
           std::to_string(size);
}

// What is played: golden decisions, or the raw observations of each step one after the other, all of one episode.
int play(const std::string &path) {
    Stream stream(path);
    if (!stream.opened()) return fail_of(path);
    Decider decider;
    const size_t size = total(decider.observations);
    std::vector<char> answers(total(decider.decided));
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // whoever pipes screens in wants each decision at once
    const bool is_golden = stream.is_golden();
    if (is_golden) {
        golden facts;
        if (!policy_golden_read(stream.file(), &facts)) {
            return fail_of(path, stream.file(), policy_message(POLICY_FILE));
        }
    }
    for (uint64_t number = 0;; ++number) {
        size_t have = 0;
        if (is_golden) {
            const int flags = std::fgetc(stream.file());
            if (flags == EOF) break;
            if ((flags & GOLDEN_STARTS) != 0) policy_reset(decider.handle.get());
        }
        for (std::vector<char> &part : decider.observations) {
            have += is_golden ? std::fread(part.data(), 1, part.size(), stream.file()) : stream.read(part);
        }
        if (!is_golden && have == 0) break;
        if (have < size) return fail_of(path, stream.file(), cut_off(number, have, size));
        if (is_golden && std::fread(answers.data(), 1, answers.size(), stream.file()) < answers.size()) {
            return fail_of(path, stream.file(), policy_message(POLICY_FILE));
        }
        decider.decide();
        print_decision(number, decider.decided);
        if (std::ferror(stdout) != 0) return fail_of("standard output");
    }
    return std::ferror(stream.file()) != 0 ? fail_of(path) : 0;
}

int usage() {
    std::fprintf(stderr,
                 "usage: policy info                what the policy takes and gives\n"
                 "       policy selftest [FILE]     replay golden decisions (golden.bin here or one folder up)\n"
                 "       policy play FILE|-         decide on recorded observations, a line each\n"
                 "       policy bench [DECISIONS]   time decisions (10000)\n"
                 "         [--rate-hz HZ]           so many a second, and how many are late (1000 decisions)\n");
    return 2;
}

using Clock = std::chrono::steady_clock;

// The smallest time that at most a share of the sorted ones is above.
double percentile(const std::vector<double> &sorted, double share) {
    const auto place = static_cast<size_t>(share * static_cast<double>(sorted.size()));
    return sorted[std::min(place, sorted.size() - 1)];
}

// Decisions one after the other; or with a rate, each at its own time, from which its answer's time counts. It is missed
// if it comes after the next one is due.
int bench(uint64_t steps, double rate_hz) {
    Decider decider;
    std::vector<double> times;
    const std::chrono::duration<double> period(rate_hz > 0 ? 1 / rate_hz : 0);
    const auto first = Clock::now();
    for (uint64_t i = 0; i < steps; ++i) {
        auto start = Clock::now();
        if (rate_hz > 0) {
            start = first + std::chrono::duration_cast<Clock::duration>(period * static_cast<double>(i));
            std::this_thread::sleep_until(start);
        }
        decider.decide();
        times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    std::printf("%" PRIu64 " decisions  p50 %.1f us  p90 %.1f us  p99 %.1f us  p99.9 %.1f us  longest %.1f us", steps,
                percentile(times, 0.5), percentile(times, 0.9), percentile(times, 0.99), percentile(times, 0.999),
                times.back());
    if (rate_hz > 0) {
        const auto late = std::upper_bound(times.begin(), times.end(), period.count() * 1e6);
        std::printf("  missed %td at %g Hz", times.end() - late, rate_hz);
    }
    std::printf("\n");
    return 0;
}

// What stands behind `bench`: a number of decisions, a rate, both or neither.
int bench(const std::vector<std::string> &words) {
    long steps = 0;
    double rate_hz = 0;
    for (size_t i = 0; i < words.size(); ++i) {
        char *end = nullptr;
        if (words[i] == "--rate-hz" && i + 1 < words.size()) {
            rate_hz = std::strtod(words[++i].c_str(), &end);
            if (!(rate_hz >= 0.001 && rate_hz <= 1e6)) return usage();
        } else {
            steps = std::strtol(words[i].c_str(), &end, 10);
            if (steps < 1 || steps > 100000000) return usage();
        }
        if (*end != '\0') return usage();
    }
    if (steps == 0) steps = rate_hz > 0 ? 1000 : 10000;
    return bench(static_cast<uint64_t>(steps), rate_hz);
}

int run(int count, char **words) {
    const std::string command = count > 1 ? words[1] : "";
    try {
        if (command == "info" && count == 2) return tell();
        if (command == "selftest" && count <= 3) return selftest(count == 3 ? words[2] : own_file("golden.bin"));
        if (command == "play" && count == 3) return play(words[2]);
        if (command == "bench") return bench(std::vector<std::string>(words + 2, words + count));
    } catch (const std::exception &error) {
        return fail(error.what());
    }
    return usage();
}

}  // namespace

int main(int count, char **words) {
    const int status = run(count, words);
    const bool told = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
    return status == 0 && !told ? fail_of("standard output") : status;
}
