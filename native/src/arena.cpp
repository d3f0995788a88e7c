#include "arena.h"

#include <cstdint>
#include <cstdlib>
#include <new>

constinit thread_local Arena *current_arena = nullptr;

struct Arena::Piece {
    Piece *next;
    std::size_t bytes;
};

void *Arena::allocate(std::size_t bytes) noexcept {
    if (bytes > SIZE_MAX / 2) return nullptr;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (memory_ != nullptr) {
        if (bytes > size_ - used_) return nullptr;
        used_ += bytes;
        return memory_ + used_ - bytes;
    }
    void *block = nullptr;  // the piece's own facts lie in front of it
    if (posix_memalign(&block, alignment, alignment + bytes) != 0) return nullptr;
    pieces_ = new (block) Piece{pieces_, bytes};
    used_ += bytes;
    return static_cast<char *>(block) + alignment;
}

bool Arena::holds(const void *pointer) const noexcept {
    const auto place = reinterpret_cast<std::uintptr_t>(pointer);
    const auto within = [place](const void *start, std::size_t bytes) {
        return place - reinterpret_cast<std::uintptr_t>(start) < bytes;
    };
    if (memory_ != nullptr) return within(memory_, size_);
    for (const Piece *piece = pieces_; piece != nullptr; piece = piece->next) {
        if (within(piece, alignment + piece->bytes)) return true;
    }
    return false;
}

void Arena::clear() noexcept {
    release_pieces();
    used_ = 0;
}

#ifdef POLICY_KEEP_NEW

// Pieces stay apart, so that AddressSanitizer sees what writes beyond one.
bool Arena::settle() noexcept {
    clear();
    return true;
}

#else

bool Arena::settle() noexcept {
    const std::size_t bytes = used_ == 0 ? alignment : used_;
    clear();
    void *block = nullptr;
    if (posix_memalign(&block, alignment, bytes) != 0) return false;
    memory_ = static_cast<char *>(block);
    size_ = bytes;
    return true;
}

#endif

void Arena::release_pieces() noexcept {
    while (pieces_ != nullptr) {
        Piece *next = pieces_->next;
        std::free(pieces_);
        pieces_ = next;
    }
}

Arena::~Arena() {
    release_pieces();
    std::free(memory_);
}

// The generated code allocates scratch memory with `new`. These operators stay inside the library (exports.map).
#ifndef POLICY_KEEP_NEW

void *operator new(std::size_t bytes) {
    void *memory = current_arena != nullptr ? current_arena->allocate(bytes) : std::malloc(bytes == 0 ? 1 : bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

void operator delete(void *memory) noexcept {
    if (current_arena == nullptr || !current_arena->holds(memory)) std::free(memory);
}

void *operator new[](std::size_t bytes) { return operator new(bytes); }
void operator delete(void *memory, std::size_t) noexcept { operator delete(memory); }
void operator delete[](void *memory) noexcept { operator delete(memory); }
void operator delete[](void *memory, std::size_t) noexcept { operator delete(memory); }

#endif
