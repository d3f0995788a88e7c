// Any calls of the library, in any order: pointers that are NULL, memory of any content, damaged golden decisions. Every
// call must return what its arguments deserve. Clang's libFuzzer chooses them, by what they reach; elsewhere, with
// STANDALONE, they are random: `fuzz INPUTS`. POLICY_GOLDEN is a file of golden decisions.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "golden.h"
#include "policy.h"

namespace {

void require(bool right, const char *what) {
    if (right) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::abort();
}

const char *golden_path() {
    const char *path = std::getenv("POLICY_GOLDEN");
    require(path != nullptr, "POLICY_GOLDEN is not set");
    return path;
}

// The first golden decisions: enough to be damaged.
const std::string &golden_start() {
    static const std::string start = [] {
        std::ifstream file(golden_path(), std::ios::binary);
        std::string whole(std::istreambuf_iterator<char>(file), {});
        const std::size_t header = sizeof GOLDEN_MAGIC - 1 + sizeof(struct golden);
        std::uint64_t decisions = 0, bytes = 1;
        for (std::size_t i = 0; i < 4; ++i) {
            std::uint64_t number = 0;
            whole.copy(reinterpret_cast<char *>(&number), sizeof number, sizeof GOLDEN_MAGIC - 1 + 64 + i * sizeof number);
            (i == 0 ? decisions : bytes) += number;
        }
        return whole.substr(0, header + 2 * bytes);
    }();
    return start;
}

class Fuzzer {
   public:
    Fuzzer(const std::uint8_t *data, std::size_t size) : data_(data), end_(data + size) {
        inputs_ = policy_inputs(&input_arrays_);
        outputs_ = policy_outputs(&output_arrays_);
        for (std::size_t i = 0; i < inputs_; ++i) given_.emplace_back(input_arrays_[i].bytes);
        for (std::size_t i = 0; i < outputs_; ++i) made_.emplace_back(output_arrays_[i].bytes);
    }

    ~Fuzzer() {
        for (policy *handle : handles_) policy_close(handle);
    }

    bool more() const { return data_ != end_; }

    void call() {
        policy *handle = handles_.empty() || one_in(20) ? nullptr : handles_[below(handles_.size())];
        fill();
        switch (below(8)) {
            case 0:
                return open();
            case 1:
                return close();
            case 2:
                return require(policy_reset(handle) == (handle ? POLICY_OK : POLICY_ARGUMENT), "reset");
            case 3:
            case 4:
                return step(handle);
            case 5:
                return run(handle);
            case 6:
                return decide(handle);
            default:
                return one_in(4) ? selftest(handle) : damaged(handle);
        }
    }

   private:
    std::size_t byte() { return more() ? *data_++ : 0; }
    std::size_t below(std::size_t count) { return byte() % count; }
    bool one_in(std::size_t count) { return below(count) == 0; }

    // Bytes of any value: floats that are infinite or no numbers among them. A bool stays one.
    void fill() {
        std::mt19937 random(static_cast<unsigned>(byte()));
        for (std::size_t i = 0; i < inputs_; ++i) {
            const bool flag = input_arrays_[i].dtype[0] == 'b';
            for (char &byte : given_[i]) byte = static_cast<char>(flag ? random() % 2 : random());
        }
    }

    void open() {
        if (one_in(10)) return require(policy_open(nullptr) == POLICY_ARGUMENT, "open");
        if (handles_.size() == 5) return;
        policy *handle = nullptr;
        require(policy_open(&handle) == POLICY_OK && handle != nullptr, "open");
        handles_.push_back(handle);
    }

    void close() {
        policy_close(nullptr);
        if (handles_.empty()) return;
        const std::size_t place = below(handles_.size());
        policy_close(handles_[place]);
        handles_.erase(handles_.begin() + static_cast<std::ptrdiff_t>(place));
    }

    void step(policy *handle) {
        std::vector<char> values(4096);
        const void *observation = one_in(10) ? nullptr : given_[0].data();
        void *action = one_in(10) ? nullptr : made_[0].data();
        const bool right = handle != nullptr && observation != nullptr && action != nullptr;
        const bool several = policy_observations() > 1 || policy_action_outputs() > 1;
        const policy_status status = policy_step(handle, observation, action, one_in(2) ? nullptr : values.data());
        require(status == (several ? POLICY_SEVERAL : right ? POLICY_OK : POLICY_ARGUMENT), "step");
    }

    void decide(policy *handle) {
        std::vector<const void *> observations;
        std::vector<void *> actions, values;
        const std::size_t given = policy_observations(), made = policy_action_outputs();
        for (std::size_t i = 0; i < given; ++i) observations.push_back(one_in(20) ? nullptr : given_[i].data());
        for (std::size_t i = 0; i < made; ++i) actions.push_back(one_in(20) ? nullptr : made_[i].data());
        for (std::size_t i = 0; i < policy_values(); ++i) values.push_back(one_in(2) ? nullptr : made_[made + i].data());
        bool right = handle != nullptr;
        for (const void *place : observations) right = right && place != nullptr;
        for (const void *place : actions) right = right && place != nullptr;
        const policy_status status =
            policy_decide(handle, observations.data(), actions.data(), one_in(2) ? nullptr : values.data());
        require(status == (right ? POLICY_OK : POLICY_ARGUMENT), "decide");
    }

    void run(policy *handle) {
        std::vector<const void *> given;
        std::vector<void *> made;
        bool right = handle != nullptr;
        for (auto &array : given_) given.push_back(one_in(20) ? nullptr : array.data());
        for (auto &array : made_) made.push_back(one_in(20) ? nullptr : array.data());
        for (const void *place : given) right = right && place != nullptr;
        for (const void *place : made) right = right && place != nullptr;
        require(policy_run(handle, given.data(), made.data()) == (right ? POLICY_OK : POLICY_ARGUMENT), "run");
    }

    void selftest(policy *handle) {
        std::size_t decisions = 0;
        const policy_status status = policy_selftest(handle, golden_path(), one_in(2) ? nullptr : &decisions);
        require(status == (handle != nullptr ? POLICY_OK : POLICY_ARGUMENT), "selftest");
    }

    // Golden decisions with bytes changed, cut off, or of any content.
    void damaged(policy *handle) {
        std::string content = golden_start();
        for (std::size_t count = below(8); count > 0; --count) {
            const std::size_t at = one_in(2) ? byte() : (byte() << 16) + (byte() << 8) + byte();
            content[at % content.size()] = static_cast<char>(byte());
        }
        if (one_in(2)) content.resize(((byte() << 16) + (byte() << 8) + byte()) % (content.size() + 1));
        if (one_in(8)) {
            content.assign(GOLDEN_MAGIC);
            while (more()) content += static_cast<char>(byte());
        }
        static const std::string path = std::string(P_tmpdir) + "/golden." + std::to_string(getpid());
        std::ofstream(path, std::ios::binary) << content;
        std::size_t decisions = 0, rounded = 0;
        const policy_status status = policy_selftest_rounding(handle, path.c_str(), &decisions, &rounded);
        std::remove(path.c_str());
        if (handle == nullptr) return require(status == POLICY_ARGUMENT, "selftest of nothing");
        require(status == POLICY_OK || status == POLICY_FILE || status == POLICY_WRONG, "selftest of a damaged file");
        require(rounded <= decisions && (status != POLICY_OK || decisions > 0), "counts");
    }

    const std::uint8_t *data_, *end_;
    std::size_t inputs_, outputs_;
    const policy_array *input_arrays_ = nullptr, *output_arrays_ = nullptr;
    std::vector<std::vector<char>> given_, made_;
    std::vector<policy *> handles_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    Fuzzer fuzzer(data, size);
    while (fuzzer.more()) fuzzer.call();
    return 0;
}

#ifdef STANDALONE
int main(int count, char **words) {
    if (count != 2) return 2;
    std::mt19937 random(1);
    for (int input = std::atoi(words[1]); input > 0; --input) {
        std::vector<std::uint8_t> data(random() % 256);
        for (auto &byte : data) byte = static_cast<std::uint8_t>(random());
        LLVMFuzzerTestOneInput(data.data(), data.size());
    }
    std::puts("all right");
    return 0;
}
#endif
