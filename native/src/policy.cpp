#include "policy.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "arena.h"
#include "facts.h"
#include "golden.h"
#include "model.h"
#include "processor.h"
#include "sha256.h"

extern "C" const unsigned char policy_weights[], policy_weights_end[];

// What would run when the library is loaded, of the code for more than the plainest processor (CMakeLists.txt).
extern "C" {
using Initialiser = void (*)(int, char **, char **);
extern const Initialiser __start_model_initialisers[] __attribute__((weak));
extern const Initialiser __stop_model_initialisers[] __attribute__((weak));
}

// What this file takes for granted about a policy.
constexpr bool same(const char *one, const char *other) {
    for (; *one != '\0' && *one == *other; ++one, ++other) {
    }
    return *one == *other;
}

constexpr bool observations_come_first() {
    for (std::size_t i = 0; i < facts::observations; ++i) {
        const policy_array &array = facts::input_arrays[i];
        if (array.next >= 0 || same(array.name, "is_init")) return false;
    }
    return 0 < facts::observations && facts::observations <= facts::inputs;
}

constexpr bool others_are_states_or_is_init() {
    for (std::size_t i = facts::observations; i < facts::inputs; ++i) {
        const policy_array &array = facts::input_arrays[i];
        const bool flag = same(array.name, "is_init") && same(array.dtype, "bool") && array.bytes == sizeof(bool);
        if (array.next < 0 && !flag) return false;
    }
    return true;
}

constexpr bool next_states_come_last() {
    for (std::size_t i = facts::observations; i < facts::inputs; ++i) {
        const int next = facts::input_arrays[i].next;
        if (next >= 0 && static_cast<std::size_t>(next) < facts::decided) return false;
    }
    return 0 < facts::actions && facts::decided <= facts::outputs;
}

static_assert(observations_come_first() && others_are_states_or_is_init(),
              "the native library takes observations first, then states and is_init");
static_assert(next_states_come_last(), "the native library gives actions first, then values, then next states");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "golden decisions are read on little-endian processors only");

struct policy {
    Model *model;
    Arena arena;
    char *states[2][facts::inputs];  // by input: what the next step reads, and where it writes to
    int current;
    bool starts;  // the next step is an episode's first
};

namespace {

void initialise() {
    static const bool done = [] {
        for (const Initialiser *one = __start_model_initialisers; one != __stop_model_initialisers; ++one) {
            (*one)(0, nullptr, nullptr);
        }
        return true;
    }();
    static_cast<void>(done);
}

// Run the program; an output whose place is nullptr is dropped.
policy_status run(policy &handle, const void *const *inputs, void *const *outputs) noexcept {
    handle.arena.clear();
    const ArenaScope scope(handle.arena);
    try {
        AtenTensorHandle given[facts::inputs], made[facts::outputs] = {};
        for (std::size_t i = 0; i < facts::inputs; ++i) {
            const policy_array &array = facts::input_arrays[i];
            given[i] = make_tensor(inputs[i], static_cast<std::int64_t>(array.dimensions), array.shape,
                                   facts::input_dtypes[i]);
        }
        run_model(*handle.model, given, made);
        for (std::size_t i = 0; i < facts::outputs; ++i) {
            if (outputs[i] != nullptr) copy_dense(made[i], outputs[i]);
        }
        return POLICY_OK;
    } catch (...) {
        return POLICY_FAILED;
    }
}

std::size_t bytes_of(const policy_array *arrays, std::size_t first, std::size_t end) {
    std::size_t bytes = 0;
    for (std::size_t i = first; i < end; ++i) bytes += arrays[i].bytes;
    return bytes;
}

int find(const policy_array *arrays, std::size_t count, const char *name) {
    for (std::size_t i = 0; name != nullptr && i < count; ++i) {
        if (same(arrays[i].name, name)) return static_cast<int>(i);
    }
    return -1;
}

// Decide; `decided` has places for actions and values, and what is nullptr of them is dropped.
policy_status step(policy &handle, const void *const *observations, void *const *decided) noexcept {
    const bool starts = handle.starts;
    const void *given[facts::inputs];
    void *made[facts::outputs] = {};
    for (std::size_t i = 0; i < facts::observations; ++i) given[i] = observations[i];
    for (std::size_t i = facts::observations; i < facts::inputs; ++i) {
        const int next = facts::input_arrays[i].next;
        given[i] = next < 0 ? static_cast<const void *>(&starts) : handle.states[handle.current][i];
        if (next >= 0) made[next] = handle.states[1 - handle.current][i];
    }
    for (std::size_t i = 0; i < facts::decided; ++i) made[i] = decided[i];
    const policy_status status = run(handle, given, made);
    if (status == POLICY_OK) {
        handle.current = 1 - handle.current;
        handle.starts = false;
    }
    return status;
}

// Blank observations. Each has a block of its own, which is aligned for any dtype.
class Observations {
   public:
    Observations() noexcept {
        for (std::size_t i = 0; i < facts::observations; ++i) {
            const policy_array &array = facts::input_arrays[i];
            places_[i] = std::calloc(1, array.bytes);
            // A mask that allows nothing leaves nothing to choose from.
            if (places_[i] != nullptr && same(array.dtype, "bool")) std::memset(places_[i], 1, array.bytes);
        }
    }
    ~Observations() {
        for (void *place : places_) std::free(place);
    }
    Observations(const Observations &) = delete;
    Observations &operator=(const Observations &) = delete;

    bool allocated() const noexcept {
        for (const void *place : places_) {
            if (place == nullptr) return false;
        }
        return true;
    }
    bool read(std::FILE *file) noexcept {
        for (std::size_t i = 0; i < facts::observations; ++i) {
            const std::size_t bytes = facts::input_arrays[i].bytes;
            if (std::fread(places_[i], 1, bytes, file) != bytes) return false;
        }
        return true;
    }
    const void *const *places() const noexcept { return places_; }

   private:
    void *places_[facts::observations];
};

// How much memory a step takes, the first one tells.
policy_status set_memory_aside(policy &handle) noexcept {
    const Observations blank;
    if (!blank.allocated()) return POLICY_MEMORY;
    void *const dropped[facts::decided] = {};
    policy_status status = step(handle, blank.places(), dropped);
    if (status == POLICY_OK) status = step(handle, blank.places(), dropped);  // now that all that is made once is made
    if (status == POLICY_OK && !handle.arena.settle()) status = POLICY_MEMORY;
    return status;
}

// Let places of outputs lie one after the other, those from `first` on.
void line_up(void **places, std::size_t first, void *memory) noexcept {
    auto *place = static_cast<char *>(memory);
    for (std::size_t i = first; i < facts::decided; ++i) {
        places[i] = place;
        place += facts::output_arrays[i].bytes;
    }
}

template <typename Real>
bool all_close(const char *found, const char *expected, std::size_t bytes, double tolerance) {
    for (std::size_t at = 0; at < bytes; at += sizeof(Real)) {
        Real one, other;
        std::memcpy(&one, found + at, sizeof one);
        std::memcpy(&other, expected + at, sizeof other);
        if (std::memcmp(&one, &other, sizeof one) == 0) continue;  // infinity less itself is no number
        const double known = static_cast<double>(other);
        const double allowed = std::isfinite(known) ? tolerance * std::fmax(1, std::fabs(known)) : tolerance;
        if (!(std::fabs(static_cast<double>(one) - known) <= allowed)) return false;
    }
    return true;
}

bool close_enough(const char *dtype, const char *found, const char *expected, std::size_t bytes, double tolerance) {
    if (same(dtype, "float32")) return all_close<float>(found, expected, bytes, tolerance);
    if (same(dtype, "float64")) return all_close<double>(found, expected, bytes, tolerance);
    return std::memcmp(found, expected, bytes) == 0;
}

// The actions, then the values, as they stand one after the other in golden decisions.
bool all_close_enough(const char *found, const char *expected, double tolerance, bool tie) {
    for (std::size_t i = 0; i < facts::decided; ++i) {
        const policy_array &array = facts::output_arrays[i];
        const bool is_number = same(array.dtype, "float32") || same(array.dtype, "float64");
        const bool any_choice = tie && i < facts::actions && !is_number;
        if (!any_choice && !close_enough(array.dtype, found, expected, array.bytes, tolerance)) return false;
        found += array.bytes;
        expected += array.bytes;
    }
    return true;
}

// Of golden decisions, how many are right, and how many of those only but for rounding.
struct Replayed {
    std::size_t right = 0, rounded = 0;
};

// `memory` has room for actions and values twice: as they should be, and as they come out.
policy_status replay(policy &handle, std::FILE *file, const golden &golden, Observations &observations, char *memory,
                     Replayed &replayed) {
    const std::size_t size = golden.action_bytes + golden.values_bytes;
    char *expected = memory, *found = memory + size;
    void *decided[facts::decided];
    line_up(decided, 0, found);
    for (std::uint64_t i = 0; i < golden.decisions; ++i) {
        const int flags = std::fgetc(file);
        if (flags < 0 || flags > GOLDEN_FLAGS || !observations.read(file) ||
            std::fread(expected, 1, size, file) != size) {
            return POLICY_FILE;
        }
        if ((flags & GOLDEN_STARTS) != 0) policy_reset(&handle);
        const policy_status status = step(handle, observations.places(), decided);
        if (status != POLICY_OK) return status;
        if (!all_close_enough(found, expected, golden.tolerance, (flags & GOLDEN_TIE) != 0)) return POLICY_WRONG;
        ++replayed.right;
        if (std::memcmp(found, expected, size) != 0) ++replayed.rounded;
    }
    return std::fgetc(file) == EOF ? POLICY_OK : POLICY_FILE;
}

}  // namespace

int policy_golden_read(FILE *file, struct golden *golden) {
    if (std::fread(golden->name, sizeof golden->name, 1, file) != 1) return 0;
    for (uint64_t *number : {&golden->decisions, &golden->observation_bytes, &golden->action_bytes,
                             &golden->values_bytes}) {
        if (std::fread(number, sizeof *number, 1, file) != 1) return 0;
    }
    return std::fread(&golden->tolerance, sizeof golden->tolerance, 1, file) == 1 &&
           std::strncmp(golden->name, facts::name, sizeof golden->name) == 0 && golden->decisions > 0 &&
           std::isfinite(golden->tolerance) && golden->tolerance >= 0 &&
           golden->observation_bytes == bytes_of(facts::input_arrays, 0, facts::observations) &&
           golden->action_bytes == bytes_of(facts::output_arrays, 0, facts::actions) &&
           golden->values_bytes == bytes_of(facts::output_arrays, facts::actions, facts::decided);
}

extern "C" {

const char *policy_name(void) { return facts::name; }

const char *policy_facts(void) { return facts::meaning; }

const char *policy_description(void) { return facts::description; }

const char *policy_instructions(void) { return processor_needed(); }

size_t policy_inputs(const policy_array **arrays) {
    if (arrays != nullptr) *arrays = facts::input_arrays;
    return facts::inputs;
}

size_t policy_outputs(const policy_array **arrays) {
    if (arrays != nullptr) *arrays = facts::output_arrays;
    return facts::outputs;
}

size_t policy_observations(void) { return facts::observations; }

size_t policy_action_outputs(void) { return facts::actions; }

size_t policy_values(void) { return facts::decided - facts::actions; }

int policy_input(const char *name) { return find(facts::input_arrays, facts::inputs, name); }

int policy_output(const char *name) { return find(facts::output_arrays, facts::outputs, name); }

size_t policy_actions(const char *const **names) {
    if (names != nullptr) *names = facts::index_names;
    return facts::indices;
}

const char *policy_message(policy_status status) {
    switch (status) {
        case POLICY_OK:
            return "no error";
        case POLICY_ARGUMENT:
            return "a pointer is NULL that must not be";
        case POLICY_PROCESSOR:
            return "this processor lacks instructions that the library was built for: " POLICY_INSTRUCTIONS;
        case POLICY_MEMORY:
            return "there is not enough memory";
        case POLICY_FILE:
            return "not a file of golden decisions of this policy, or a damaged one";
        case POLICY_DAMAGED:
            return "the weights are not those that the library was built with";
        case POLICY_WRONG:
            return "a golden decision comes out otherwise, by more than rounding";
        case POLICY_FAILED:
            return "the compiled program has failed";
        case POLICY_SEVERAL:
            return "the policy has several observations or actions: call policy_decide instead of policy_step";
    }
    return "unknown status";
}

policy_status policy_open(policy **handle) {
    if (handle == nullptr) return POLICY_ARGUMENT;
    *handle = nullptr;
    if (!processor_suffices()) return POLICY_PROCESSOR;
    auto *memory = static_cast<policy *>(std::malloc(sizeof(policy)));
    if (memory == nullptr) return POLICY_MEMORY;
    auto *opened = new (memory) policy{};
    policy_status status = POLICY_OK;
    for (auto &set : opened->states) {
        for (std::size_t i = 0; i < facts::inputs; ++i) {
            if (facts::input_arrays[i].next < 0) continue;
            set[i] = static_cast<char *>(std::calloc(1, facts::input_arrays[i].bytes));
            if (set[i] == nullptr) status = POLICY_MEMORY;
        }
    }
    if (status == POLICY_OK) {
        try {
            initialise();
            opened->model = open_model();
            status = set_memory_aside(*opened);
        } catch (const std::bad_alloc &) {
            status = POLICY_MEMORY;
        } catch (...) {
            status = POLICY_FAILED;
        }
    }
    if (status != POLICY_OK) {
        policy_close(opened);
        return status;
    }
    policy_reset(opened);
    *handle = opened;
    return POLICY_OK;
}

void policy_close(policy *handle) {
    if (handle == nullptr) return;
    if (handle->model != nullptr) close_model(handle->model);
    for (auto &set : handle->states) {
        for (char *state : set) std::free(state);
    }
    handle->~policy();
    std::free(handle);
}

policy_status policy_reset(policy *handle) {
    if (handle == nullptr) return POLICY_ARGUMENT;
    handle->starts = true;
    return POLICY_OK;
}

policy_status policy_step(policy *handle, const void *observation, void *action, void *values) {
    if (facts::observations > 1 || facts::actions > 1) return POLICY_SEVERAL;
    if (handle == nullptr || observation == nullptr || action == nullptr) return POLICY_ARGUMENT;
    void *decided[facts::decided] = {action};
    if (values != nullptr) line_up(decided, 1, values);
    return step(*handle, &observation, decided);
}

policy_status policy_decide(policy *handle, const void *const *observations, void *const *actions,
                            void *const *values) {
    if (handle == nullptr || observations == nullptr || actions == nullptr) return POLICY_ARGUMENT;
    void *decided[facts::decided] = {};
    for (std::size_t i = 0; i < facts::observations; ++i) {
        if (observations[i] == nullptr) return POLICY_ARGUMENT;
    }
    for (std::size_t i = 0; i < facts::actions; ++i) {
        if (actions[i] == nullptr) return POLICY_ARGUMENT;
        decided[i] = actions[i];
    }
    for (std::size_t i = facts::actions; i < facts::decided && values != nullptr; ++i) {
        decided[i] = values[i - facts::actions];
    }
    return step(*handle, observations, decided);
}

policy_status policy_run(policy *handle, const void *const *inputs, void *const *outputs) {
    if (handle == nullptr || inputs == nullptr || outputs == nullptr) return POLICY_ARGUMENT;
    for (std::size_t i = 0; i < facts::inputs; ++i) {
        if (inputs[i] == nullptr) return POLICY_ARGUMENT;
    }
    for (std::size_t i = 0; i < facts::outputs; ++i) {
        if (outputs[i] == nullptr) return POLICY_ARGUMENT;
    }
    return run(*handle, inputs, outputs);
}

policy_status policy_selftest(policy *handle, const char *path, size_t *decisions) {
    return policy_selftest_rounding(handle, path, decisions, nullptr);
}

policy_status policy_selftest_rounding(policy *handle, const char *path, size_t *decisions, size_t *rounded) {
    Replayed replayed;
    if (decisions != nullptr) *decisions = 0;
    if (rounded != nullptr) *rounded = 0;
    if (handle == nullptr || path == nullptr) return POLICY_ARGUMENT;
    unsigned char digest[sizeof facts::weights_sha256];
    sha256(policy_weights, static_cast<std::size_t>(policy_weights_end - policy_weights), digest);
    if (std::memcmp(digest, facts::weights_sha256, sizeof digest) != 0) return POLICY_DAMAGED;
    std::FILE *file = std::fopen(path, "rb");
    if (file == nullptr) return POLICY_FILE;
    policy_status status = POLICY_FILE;
    golden found;
    char magic[sizeof GOLDEN_MAGIC - 1];
    if (std::fread(magic, sizeof magic, 1, file) == 1 && std::memcmp(magic, GOLDEN_MAGIC, sizeof magic) == 0 &&
        policy_golden_read(file, &found)) {
        Observations observations;
        auto *memory = static_cast<char *>(std::malloc(2 * (found.action_bytes + found.values_bytes)));
        const bool allocated = memory != nullptr && observations.allocated();
        status = allocated ? replay(*handle, file, found, observations, memory, replayed) : POLICY_MEMORY;
        std::free(memory);
    }
    std::fclose(file);
    policy_reset(handle);
    if (decisions != nullptr) *decisions = replayed.right;
    if (rounded != nullptr) *rounded = replayed.rounded;
    return status;
}

}  // extern "C"
