// Handles in many threads, opened, played, tested and closed at the same time: for builds with sanitizers.
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "policy.h"

namespace {

bool work(const char *golden) {
    for (int round = 0; round < 2; ++round) {
        policy *handle = nullptr;
        if (policy_open(&handle) != POLICY_OK) return false;
        std::size_t decisions = 0;
        if (policy_selftest(handle, golden, &decisions) != POLICY_OK || decisions == 0) return false;
        const policy_array *inputs = nullptr, *outputs = nullptr;
        std::vector<std::vector<char>> memory;
        std::vector<const void *> given;
        std::vector<void *> made;
        const std::size_t count = policy_inputs(&inputs), results = policy_outputs(&outputs);
        memory.reserve(count + results);
        for (std::size_t i = 0; i < count; ++i) given.push_back(memory.emplace_back(inputs[i].bytes).data());
        for (std::size_t i = 0; i < results; ++i) made.push_back(memory.emplace_back(outputs[i].bytes).data());
        for (int step = 0; step < 5; ++step) {
            if (policy_run(handle, given.data(), made.data()) != POLICY_OK) return false;
            void *const *values = made.data() + policy_action_outputs();
            if (policy_decide(handle, given.data(), made.data(), values) != POLICY_OK) return false;
        }
        policy_close(handle);
    }
    return true;
}

}  // namespace

int main(int count, char **words) {
    if (count != 2) return 2;
    std::vector<std::thread> threads;
    std::vector<int> right(4, 0);
    for (std::size_t i = 0; i < right.size(); ++i) threads.emplace_back([&, i] { right[i] = work(words[1]); });
    for (std::thread &thread : threads) thread.join();
    for (const int one : right) {
        if (one == 0) return 1;
    }
    std::puts("all right");
    return 0;
}
