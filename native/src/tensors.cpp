// AOTInductor's C interface, as far as it is bookkeeping. What computes is in the generated code; an operator that would
// need PyTorch's library is missing here, and the linker names it.
//
// Tensors never own memory. Within a step they, and what they show, lie in the arena; outside, where a model is built,
// on the heap.
#include "tensors.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "arena.h"

namespace {

using torch_private::cpu, torch_private::strided;

std::int64_t span(std::int64_t dimensions, const std::int64_t *sizes, const std::int64_t *strides) noexcept {
    std::int64_t last = 0;
    for (std::int64_t d = 0; d < dimensions; ++d) {
        if (sizes[d] == 0) return 0;
        last += (sizes[d] - 1) * strides[d];
    }
    return last + 1;
}

AOTITorchError make(char *storage, std::int64_t offset, std::int64_t dimensions, const std::int64_t *sizes,
                    const std::int64_t *strides, std::int32_t dtype, AtenTensorHandle *result) noexcept {
    if (dimensions < 0 || dimensions > max_dimensions || element_bytes(dtype) == 0) return AOTI_TORCH_FAILURE;
    const bool on_heap = current_arena == nullptr;
    void *memory = on_heap ? std::malloc(sizeof(AtenTensorOpaque)) : current_arena->allocate(sizeof(AtenTensorOpaque));
    if (memory == nullptr) return AOTI_TORCH_FAILURE;
    auto *tensor = new (memory) AtenTensorOpaque;
    tensor->storage = storage;
    tensor->offset = offset;
    tensor->dimensions = dimensions;
    tensor->dtype = dtype;
    tensor->on_heap = on_heap;
    for (std::int64_t d = 0; d < dimensions; ++d) {
        tensor->sizes[d] = sizes[d];
        tensor->strides[d] = strides[d];
    }
    *result = tensor;
    return AOTI_TORCH_SUCCESS;
}

void copy_dimension(const char *source, const AtenTensorOpaque &tensor, std::int64_t d, std::size_t bytes,
                    char *&target) noexcept {
    if (d == tensor.dimensions) {
        std::memcpy(target, source, bytes);
        target += bytes;
        return;
    }
    const auto step = tensor.strides[d] * static_cast<std::int64_t>(bytes);
    if (d + 1 == tensor.dimensions && bytes == sizeof(std::int32_t)) {  // the loop that counts
        for (std::int64_t i = 0; i < tensor.sizes[d]; ++i, target += bytes) {
            std::memcpy(target, source + i * step, sizeof(std::int32_t));
        }
        return;
    }
    for (std::int64_t i = 0; i < tensor.sizes[d]; ++i) copy_dimension(source + i * step, tensor, d + 1, bytes, target);
}

}  // namespace

std::size_t element_bytes(std::int32_t dtype) noexcept {
    switch (dtype) {
        case dtype_uint8:
        case dtype_int8:
        case dtype_bool:
            return 1;
        case dtype_int16:
        case dtype_float16:
        case dtype_bfloat16:
            return 2;
        case dtype_int32:
        case dtype_float32:
            return 4;
        case dtype_int64:
        case dtype_float64:
            return 8;
        default:
            return 0;
    }
}

std::int64_t AtenTensorOpaque::elements() const noexcept {
    std::int64_t count = 1;
    for (std::int64_t d = 0; d < dimensions; ++d) count *= sizes[d];
    return count;
}

std::int64_t AtenTensorOpaque::storage_bytes() const noexcept {
    return (offset + span(dimensions, sizes, strides)) * static_cast<std::int64_t>(element_bytes(dtype));
}

char *AtenTensorOpaque::data() const noexcept {
    return storage + offset * static_cast<std::int64_t>(element_bytes(dtype));
}

AtenTensorHandle make_tensor(const void *data, std::int64_t dimensions, const std::int64_t *sizes, std::int32_t dtype) {
    std::int64_t strides[max_dimensions], stride = 1;
    for (std::int64_t d = dimensions; d-- > 0;) {
        strides[d] = stride;
        stride *= sizes[d];
    }
    AtenTensorHandle tensor = nullptr;
    auto *storage = const_cast<char *>(static_cast<const char *>(data));
    if (make(storage, 0, dimensions, sizes, strides, dtype, &tensor) != AOTI_TORCH_SUCCESS) throw std::bad_alloc();
    return tensor;
}

void copy_dense(AtenTensorHandle tensor, void *target) noexcept {
    const std::size_t bytes = element_bytes(tensor->dtype);
    std::int64_t stride = 1;
    bool dense = true;
    for (std::int64_t d = tensor->dimensions; d-- > 0;) {
        dense = dense && (tensor->sizes[d] == 1 || tensor->strides[d] == stride);
        stride *= tensor->sizes[d];
    }
    if (dense) {
        std::memcpy(target, tensor->data(), static_cast<std::size_t>(stride) * bytes);
        return;
    }
    auto *place = static_cast<char *>(target);
    copy_dimension(tensor->data(), *tensor, 0, bytes, place);
}

extern "C" {

std::int32_t aoti_torch_device_type_cpu() { return cpu; }
std::int32_t aoti_torch_device_type_cuda() { return torch_private::cuda; }
std::int32_t aoti_torch_layout_strided() { return strided; }
std::int32_t aoti_torch_dtype_uint8() { return dtype_uint8; }
std::int32_t aoti_torch_dtype_int8() { return dtype_int8; }
std::int32_t aoti_torch_dtype_int16() { return dtype_int16; }
std::int32_t aoti_torch_dtype_int32() { return dtype_int32; }
std::int32_t aoti_torch_dtype_int64() { return dtype_int64; }
std::int32_t aoti_torch_dtype_float16() { return dtype_float16; }
std::int32_t aoti_torch_dtype_bfloat16() { return dtype_bfloat16; }
std::int32_t aoti_torch_dtype_float32() { return dtype_float32; }
std::int32_t aoti_torch_dtype_float64() { return dtype_float64; }
std::int32_t aoti_torch_dtype_bool() { return dtype_bool; }

bool aoti_torch_grad_mode_is_enabled() { return false; }
void aoti_torch_grad_mode_set_enabled(bool) {}

void aoti_torch_check(bool condition, const char *, const char *, std::uint32_t, const char *message) {
    if (!condition) throw std::runtime_error(message);
}

AOTITorchError aoti_torch_empty_strided(std::int64_t dimensions, const std::int64_t *sizes, const std::int64_t *strides,
                                        std::int32_t dtype, std::int32_t device, std::int32_t,
                                        AtenTensorHandle *result) {
    if (current_arena == nullptr || device != cpu) return AOTI_TORCH_FAILURE;
    const std::int64_t bytes = span(dimensions, sizes, strides) * static_cast<std::int64_t>(element_bytes(dtype));
    auto *storage = static_cast<char *>(current_arena->allocate(static_cast<std::size_t>(bytes)));
    if (storage == nullptr) return AOTI_TORCH_FAILURE;
    return make(storage, 0, dimensions, sizes, strides, dtype, result);
}

AOTITorchError aoti_torch_create_tensor_from_blob(void *data, std::int64_t dimensions, const std::int64_t *sizes,
                                                  const std::int64_t *strides, std::int64_t offset, std::int32_t dtype,
                                                  std::int32_t device, std::int32_t, AtenTensorHandle *result) {
    if (device != cpu) return AOTI_TORCH_FAILURE;
    return make(static_cast<char *>(data), offset, dimensions, sizes, strides, dtype, result);
}

AOTITorchError aoti_torch_create_tensor_from_blob_v2(void *data, std::int64_t dimensions, const std::int64_t *sizes,
                                                     const std::int64_t *strides, std::int64_t offset,
                                                     std::int32_t dtype, std::int32_t device, std::int32_t index,
                                                     AtenTensorHandle *result, std::int32_t layout,
                                                     const std::uint8_t *, std::int64_t) {
    if (layout != strided) return AOTI_TORCH_FAILURE;  // packed by a library that is not there
    return aoti_torch_create_tensor_from_blob(data, dimensions, sizes, strides, offset, dtype, device, index, result);
}

AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle self, std::int64_t dimensions, const std::int64_t *sizes,
                                              const std::int64_t *strides, std::int64_t offset,
                                              AtenTensorHandle *result) {
    return make(self->storage, self->offset + offset, dimensions, sizes, strides, self->dtype, result);
}

AOTITorchError aoti_torch_as_strided(AtenTensorHandle self, const std::int64_t *sizes, const std::int64_t *strides,
                                     AtenTensorHandle *result) {
    return make(self->storage, self->offset, self->dimensions, sizes, strides, self->dtype, result);
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle self, AtenTensorHandle *result) {
    return make(self->storage, self->offset, self->dimensions, self->sizes, self->strides, self->dtype, result);
}

AOTITorchError aoti_torch_clone(AtenTensorHandle self, AtenTensorHandle *result) {
    if (current_arena == nullptr) return AOTI_TORCH_FAILURE;
    auto *storage = static_cast<char *>(current_arena->allocate(static_cast<std::size_t>(self->storage_bytes())));
    if (storage == nullptr) return AOTI_TORCH_FAILURE;
    std::memcpy(storage, self->storage, static_cast<std::size_t>(self->storage_bytes()));
    return make(storage, self->offset, self->dimensions, self->sizes, self->strides, self->dtype, result);
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
    if (tensor->on_heap) std::free(tensor);
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void **result) {
    *result = tensor->data();
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, std::int64_t *result) {
    *result = tensor->dimensions;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, std::int64_t *result) {
    *result = tensor->elements();
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, std::int64_t **result) {
    *result = tensor->sizes;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, std::int64_t d, std::int64_t *result) {
    if (d < 0 || d >= tensor->dimensions) return AOTI_TORCH_FAILURE;
    *result = tensor->sizes[d];
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, std::int64_t **result) {
    *result = tensor->strides;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, std::int64_t d, std::int64_t *result) {
    if (d < 0 || d >= tensor->dimensions) return AOTI_TORCH_FAILURE;
    *result = tensor->strides[d];
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, std::int64_t *result) {
    *result = tensor->offset;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle tensor, std::int64_t *result) {
    *result = tensor->storage_bytes();
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, std::int32_t *result) {
    *result = tensor->dtype;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, std::int32_t *result) {
    *result = cpu;
    return AOTI_TORCH_SUCCESS;
}

}  // extern "C"
