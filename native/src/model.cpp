#include POLICY_GENERATED

#include "model.h"

extern const std::uint8_t policy_weights[];

class Model : public torch::aot_inductor::AOTInductorModel {
   public:
    using AOTInductorModel::AOTInductorModel;
};

static_assert((AOTI_CONST_ALIGNMENT & (AOTI_CONST_ALIGNMENT - 1)) == 0 && AOTI_CONST_ALIGNMENT >= 16,
              "AOTInductor lays its weights out in another way: docs/upgrading.md");

Model *open_model() {
    namespace aoti = torch::aot_inductor;
    auto constants = std::make_shared<aoti::ConstantMap>();
    auto model = std::make_unique<Model>(constants, std::make_shared<std::vector<aoti::ConstantHandle>>(), "cpu",
                                         std::nullopt);
    std::size_t start = 0;  // the weights lie one after the other, and are read where they lie
    for (std::size_t i = 0; i < model->num_constants(); ++i) {
        const auto index = static_cast<std::int64_t>(i);
        AtenTensorHandle tensor = nullptr;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
            const_cast<std::uint8_t *>(policy_weights) + start, static_cast<std::int64_t>(model->constant_ndim(index)),
            model->constant_shape(index), model->constant_stride(index),
            static_cast<std::int64_t>(model->constant_offset(index)), model->constant_dtype(index),
            aoti_torch_device_type_cpu(), 0, &tensor));
        constants->emplace(model->constant_name(index), aoti::RAIIAtenTensorHandle(tensor));
        start += (model->constant_data_size(index) + AOTI_CONST_ALIGNMENT - 1) / AOTI_CONST_ALIGNMENT *
                 AOTI_CONST_ALIGNMENT;
    }
    model->update_constants_map(constants);
    return model.release();
}

void close_model(Model *model) noexcept { delete model; }

void run_model(Model &model, AtenTensorHandle *inputs, AtenTensorHandle *outputs) {
    model.run_impl(inputs, outputs, nullptr, nullptr);
}
