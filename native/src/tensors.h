// The tensors behind AOTInductor's C interface: a pointer with sizes and strides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "torch_private.h"

constexpr int max_dimensions = 12;

struct AtenTensorOpaque {
    char *storage;           // where the storage starts
    std::int64_t offset;     // of the first element, in elements
    std::int64_t dimensions;
    std::int64_t sizes[max_dimensions], strides[max_dimensions];
    std::int32_t dtype;
    bool on_heap;            // and not in the arena of a step

    std::int64_t elements() const noexcept;
    std::int64_t storage_bytes() const noexcept;
    char *data() const noexcept;
};

// Bytes of an element, or 0 for a dtype that no tensor here has.
std::size_t element_bytes(std::int32_t dtype) noexcept;

// A dense tensor around memory that is not its own.
AtenTensorHandle make_tensor(const void *data, std::int64_t dimensions, const std::int64_t *sizes, std::int32_t dtype);

// Write a tensor's elements one after the other.
void copy_dense(AtenTensorHandle tensor, void *target) noexcept;
