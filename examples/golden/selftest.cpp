// Replay golden decisions with ONNX Runtime: g++ -std=c++17 selftest.cpp -lonnxruntime -o selftest && ./selftest models/dqn
#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

template <typename Real>  // whether all numbers differ by rounding only
bool close(const std::string &found, const std::string &expected, double tolerance) {
    for (size_t at = 0; at < found.size(); at += sizeof(Real)) {
        Real one, other;
        std::memcpy(&one, &found[at], sizeof one), std::memcpy(&other, &expected[at], sizeof other);
        const double size = std::isfinite(other) ? std::fmax(1, std::fabs(other)) : 1;
        if (one != other && !(std::fabs(one - other) <= tolerance * size)) return false;
    }
    return true;
}

int main(int, char **words) {
    const std::string folder = words[1];
    std::ifstream stream(folder + "/golden.safetensors", std::ios::binary);
    const std::string file{std::istreambuf_iterator<char>(stream), {}};
    uint64_t size;
    std::memcpy(&size, file.data(), sizeof size);
    const auto header = nlohmann::json::parse(file.substr(8, size));
    const auto row_of = [&](const std::string &name, size_t row) {
        const size_t from = header[name]["data_offsets"][0], to = header[name]["data_offsets"][1];
        const size_t bytes = (to - from) / header[name]["shape"][0].get<size_t>();
        return file.substr(8 + size + from + row * bytes, bytes);
    };
    double tolerance;
    std::memcpy(&tolerance, row_of("tolerance", 0).data(), sizeof tolerance);
    Ort::Env env;
    Ort::Session session(env, (folder + "/policy.onnx").c_str(), Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions memory;
    std::vector<Ort::AllocatedStringPtr> kept;
    std::vector<const char *> inputs, outputs;
    for (size_t i = 0; i < session.GetInputCount(); ++i) kept.push_back(session.GetInputNameAllocated(i, memory));
    for (size_t i = 0; i < session.GetOutputCount(); ++i) kept.push_back(session.GetOutputNameAllocated(i, memory));
    for (const auto &name : kept) (inputs.size() < session.GetInputCount() ? inputs : outputs).push_back(name.get());
    std::map<std::string, std::string> feed;
    size_t decisions = header["tie"]["shape"][0], rounded = 0;
    for (size_t row = 0; row < decisions; ++row) {
        std::vector<Ort::Value> given;
        for (const std::string name : inputs) {
            const std::string state = "state/" + name, key = header.contains(state) ? state : "input/" + name;
            if (key != state) feed[name] = row_of(key, row);
            if (feed.count(name) == 0) feed[name] = row_of(state, 0);
            auto shape = header[key]["shape"].get<std::vector<int64_t>>();
            shape[0] = 1;
            const auto type = session.GetInputTypeInfo(given.size()).GetTensorTypeAndShapeInfo().GetElementType();
            given.push_back(Ort::Value::CreateTensor(memory.GetInfo(), feed[name].data(), feed[name].size(), shape.data(),
                                                     shape.size(), type));
        }
        auto made = session.Run({}, inputs.data(), given.data(), given.size(), outputs.data(), outputs.size());
        bool same = true;
        for (size_t i = 0; i < outputs.size(); ++i) {
            const std::string name = outputs[i], key = "output/" + name;
            const auto *data = static_cast<const char *>(made[i].GetTensorRawData());
            if (name.rfind("next_", 0) == 0) {
                std::string &state = feed[name.substr(5)];
                state.assign(data, state.size());
                continue;
            }
            const std::string expected = row_of(key, row), found(data, expected.size()), dtype = header[key]["dtype"];
            if (found == expected) continue;
            same = false;
            const bool right = dtype == "F32"   ? close<float>(found, expected, tolerance)
                               : dtype == "F64" ? close<double>(found, expected, tolerance)
                                                : row_of("tie", row)[0] != 0;
            if (right) continue;
            std::fprintf(stderr, "decision %zu: %s: damage, as no rounding explains it\n", row, name.c_str());
            return 1;
        }
        rounded += !same;
    }
    std::printf("%zu golden decisions, all as they were, %zu of them but for rounding\n", decisions, rounded);
}
