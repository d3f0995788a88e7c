// Memory that one step needs, set aside when a handle is opened.
#pragma once

#include <cstddef>

// All that a step allocates lies one after the other and is given back at once, when the next step starts. How much
// that is, a first step tells: without memory of its own, an arena takes each piece from the heap and adds them up.
class Arena {
   public:
    Arena() = default;
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    ~Arena();

    // Aligned memory, or nullptr where none is left.
    void *allocate(std::size_t bytes) noexcept;
    bool holds(const void *pointer) const noexcept;
    void clear() noexcept;
    // Set aside what has been allocated since the last clear(); false where the heap has no such block.
    bool settle() noexcept;

   private:
    struct Piece;
    static constexpr std::size_t alignment = 64;

    void release_pieces() noexcept;

    char *memory_ = nullptr;
    std::size_t size_ = 0, used_ = 0;
    Piece *pieces_ = nullptr;
};

// What `new` and tensors are taken from in this thread, if anything but the heap.
extern constinit thread_local Arena *current_arena;

class ArenaScope {
   public:
    explicit ArenaScope(Arena &arena) noexcept : before_(current_arena) { current_arena = &arena; }
    ~ArenaScope() { current_arena = before_; }
    ArenaScope(const ArenaScope &) = delete;
    ArenaScope &operator=(const ArenaScope &) = delete;

   private:
    Arena *before_;
};
