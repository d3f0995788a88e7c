// Random calls of the library: pointers that are NULL, memory of any content, handles opened and closed in any order.
// Every call must return what its arguments deserve.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "policy.h"

namespace {

void require(bool right, const char *what) {
    if (right) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::abort();
}

class Fuzzer {
   public:
    Fuzzer(unsigned seed, const char *golden) : random_(seed), golden_(golden) {
        inputs_ = policy_inputs(&input_arrays_);
        outputs_ = policy_outputs(&output_arrays_);
        for (std::size_t i = 0; i < inputs_; ++i) given_.emplace_back(input_arrays_[i].bytes);
        for (std::size_t i = 0; i < outputs_; ++i) made_.emplace_back(output_arrays_[i].bytes);
    }

    ~Fuzzer() {
        for (policy *handle : handles_) policy_close(handle);
    }

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
                return one_in(20) ? selftest(handle) : step(handle);
        }
    }

   private:
    std::size_t below(std::size_t count) { return random_() % count; }
    bool one_in(std::size_t count) { return below(count) == 0; }

    // Bytes of any value: floats that are infinite or no numbers among them. A bool stays one.
    void fill() {
        for (std::size_t i = 0; i < inputs_; ++i) {
            const bool flag = input_arrays_[i].dtype[0] == 'b';
            for (char &byte : given_[i]) byte = static_cast<char>(flag ? random_() % 2 : random_());
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
        const policy_status status = policy_selftest(handle, golden_, one_in(2) ? nullptr : &decisions);
        require(status == (handle != nullptr ? POLICY_OK : POLICY_ARGUMENT), "selftest");
    }

    std::mt19937 random_;
    const char *golden_;
    std::size_t inputs_, outputs_;
    const policy_array *input_arrays_ = nullptr, *output_arrays_ = nullptr;
    std::vector<std::vector<char>> given_, made_;
    std::vector<policy *> handles_;
};

}  // namespace

int main(int count, char **words) {
    if (count != 4) return 2;
    Fuzzer fuzzer(static_cast<unsigned>(std::atoi(words[2])), words[1]);
    for (int call = std::atoi(words[3]); call > 0; --call) fuzzer.call();
    std::puts("all right");
    return 0;
}
