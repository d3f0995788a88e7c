// Everything of PyTorch's that this runtime relies on although nothing promises that it stays: each with an assertion, so
// that another version is refused by the compiler and not by a wrong decision. What to do then: docs/upgrading.md.
//
// What generated code calls is declared by PyTorch's shim.h, and defined in tensors.cpp: a function whose arguments have
// changed does not compile, and one that is missing is named by the linker.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/Layout.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

enum Dtype : std::int32_t {  // numbers in generated code; facts.h has these names too
    dtype_uint8 = 0,
    dtype_int8 = 1,
    dtype_int16 = 2,
    dtype_int32 = 3,
    dtype_int64 = 4,
    dtype_float16 = 5,
    dtype_float32 = 6,
    dtype_float64 = 7,
    dtype_bool = 11,
    dtype_bfloat16 = 15,
};

namespace torch_private {

constexpr bool is(Dtype dtype, c10::ScalarType type) { return static_cast<int>(dtype) == static_cast<int>(type); }

static_assert(is(dtype_uint8, c10::ScalarType::Byte) && is(dtype_int8, c10::ScalarType::Char) &&
                  is(dtype_int16, c10::ScalarType::Short) && is(dtype_int32, c10::ScalarType::Int) &&
                  is(dtype_int64, c10::ScalarType::Long) && is(dtype_float16, c10::ScalarType::Half) &&
                  is(dtype_float32, c10::ScalarType::Float) && is(dtype_float64, c10::ScalarType::Double) &&
                  is(dtype_bool, c10::ScalarType::Bool) && is(dtype_bfloat16, c10::ScalarType::BFloat16),
              "PyTorch has renumbered its scalar types: docs/upgrading.md");

constexpr std::int32_t cpu = 0, cuda = 1, strided = 0;
static_assert(static_cast<int>(c10::DeviceType::CPU) == cpu && static_cast<int>(c10::DeviceType::CUDA) == cuda,
              "PyTorch has renumbered its devices: docs/upgrading.md");
static_assert(static_cast<int>(c10::Layout::Strided) == strided,
              "PyTorch has renumbered its layouts: docs/upgrading.md");
static_assert(AOTI_TORCH_SUCCESS == 0 && AOTI_TORCH_FAILURE != AOTI_TORCH_SUCCESS,
              "PyTorch has renumbered its error codes: docs/upgrading.md");

}  // namespace torch_private
