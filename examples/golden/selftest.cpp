// Replay golden decisions with ONNX Runtime: g++ -std=c++17 selftest.cpp -lonnxruntime -o selftest && ./selftest models/dqn
#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

int main(int, char **words) {
    const std::string folder = words[1];
    std::ifstream stream(folder + "/golden.safetensors", std::ios::binary);
    const std::string file{std::istreambuf_iterator<char>(stream), {}};
    const size_t start = 8 + *reinterpret_cast<const uint64_t *>(file.data());
    const auto header = nlohmann::json::parse(file.substr(8, start - 8));
    const auto row_of = [&](const std::string &name, size_t row) {
        const size_t from = header[name]["data_offsets"][0], to = header[name]["data_offsets"][1];
        const size_t size = (to - from) / header[name]["shape"][0].get<size_t>();
        return file.substr(start + from + row * size, size);
    };
    const auto number = [](const char *bytes, bool wide) {
        return wide ? *reinterpret_cast<const double *>(bytes) : *reinterpret_cast<const float *>(bytes);
    };
    const double tolerance = number(row_of("tolerance", 0).data(), true);
    const Ort::Env env;
    Ort::Session session(env, (folder + "/policy.onnx").c_str(), Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions memory;
    Ort::IoBinding bound(session);
    for (size_t i = 0; i < session.GetOutputCount(); ++i)
        bound.BindOutput(session.GetOutputNameAllocated(i, memory).get(), memory.GetInfo());
    std::map<std::string, std::string> given;
    std::map<size_t, bool> rounded;
    for (size_t row = 0; row < header["tie"]["shape"][0]; ++row) {
        for (size_t i = 0; i < session.GetInputCount(); ++i) {
            const std::string name = session.GetInputNameAllocated(i, memory).get();
            const std::string key = (header.contains("state/" + name) ? "state/" : "input/") + name;
            if (row > 0 && key[0] == 's') continue;  // as the decision before wrote it
            given[name] = row_of(key, row);
            auto shape = header[key]["shape"].get<std::vector<int64_t>>();
            shape[0] = 1;
            const auto type = session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetElementType();
            bound.BindInput(name.c_str(), Ort::Value::CreateTensor(memory.GetInfo(), given[name].data(), given[name].size(), shape.data(), shape.size(), type));
        }
        session.Run(Ort::RunOptions(), bound);
        const auto names = bound.GetOutputNames();
        const auto made = bound.GetOutputValues();
        for (size_t i = 0; i < names.size(); ++i) {
            const std::string key = "output/" + names[i];
            if (names[i].rfind("next_", 0) == 0) bound.BindInput(names[i].substr(5).c_str(), made[i]);
            if (!header.contains(key)) continue;
            const std::string expected = row_of(key, row), dtype = header[key]["dtype"];
            const auto *found = static_cast<const char *>(made[i].GetTensorRawData());
            if (std::equal(expected.begin(), expected.end(), found)) continue;
            const bool wide = dtype == "F64", real = wide || dtype == "F32";
            rounded[row] = real || row_of("tie", row)[0];
            for (size_t at = 0; real && at < expected.size(); at += wide ? 8 : 4) {
                const double one = number(found + at, wide), other = number(&expected[at], wide);
                const double size = std::isfinite(other) ? std::fmax(1, std::fabs(other)) : 1;
                if (one != other && !(std::fabs(one - other) <= tolerance * size)) rounded[row] = false;
            }
            if (rounded[row]) continue;
            std::cerr << "decision " << row << ": " << names[i] << ": damage, as no rounding explains it\n";
            return 1;
        }
    }
    std::cout << header["tie"]["shape"][0] << " golden decisions, all as they were, " << rounded.size() << " of them but for rounding\n";
}
