// The functions of whole vectors that the generated code takes from SLEEF, for the vectors of this instruction set.
//
// The two that recurrent policies call for every unit are written so that the compiler makes vector code of them; both
// stay within 2 units of the last place of single precision. The others call the C library once an element.
#if defined(__AVX2__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

inline float float_of(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// exp(x) = 2^n exp(r), n = round(x / log 2), with a polynomial for |r| <= log(2) / 2.
inline float exp_of(float x) {
    constexpr float log2_e = 1.44269504f, log_2_high = 0.693359375f, log_2_low = -2.12194440e-4f;
    // Outside, the result is 0 or infinite; what is no number becomes one here, as the conversion below needs.
    const float within = x > -104.0f ? (x < 89.0f ? x : 89.0f) : -104.0f;
    const float n = std::nearbyint(within * log2_e);
    float r = std::fma(n, -log_2_high, within);
    r = std::fma(n, -log_2_low, r);
    float p = 1.9875691500e-4f;
    p = std::fma(p, r, 1.3981999507e-3f);
    p = std::fma(p, r, 8.3334519073e-3f);
    p = std::fma(p, r, 4.1665795894e-2f);
    p = std::fma(p, r, 1.6666665459e-1f);
    p = std::fma(p, r, 5.0000001201e-1f);
    p = std::fma(p, r * r, r) + 1.0f;
    const auto whole = static_cast<std::int32_t>(n), half = whole / 2;  // in two factors, so that neither overflows
    const float result = p * float_of((half + 127) << 23) * float_of((whole - half + 127) << 23);
    return x == x ? result : x;
}

inline float tanh_of(float x) {
    const float size = std::fabs(x), square = x * x;
    float p = -5.70498872745e-3f;
    p = std::fma(p, square, 2.06390887954e-2f);
    p = std::fma(p, square, -5.37397155531e-2f);
    p = std::fma(p, square, 1.33314422036e-1f);
    p = std::fma(p, square, -3.33332819422e-1f);
    const float small = std::fma(p * square, x, x);
    const float large = std::copysign(1.0f - 2.0f / (exp_of(2.0f * size) + 1.0f), x);
    return size < 0.625f ? small : x == x ? large : x;
}

template <int lanes, typename Vector, typename Function>
inline Vector each(Vector vector, Function function) {
    float values[lanes];
    std::memcpy(values, &vector, sizeof values);
    for (float &value : values) value = function(value);
    std::memcpy(&vector, values, sizeof values);
    return vector;
}

template <int lanes, typename Vector, typename Function>
inline Vector each(Vector vector, Vector other, Function function) {
    float values[lanes], others[lanes];
    std::memcpy(values, &vector, sizeof values);
    std::memcpy(others, &other, sizeof others);
    for (int i = 0; i < lanes; ++i) values[i] = function(values[i], others[i]);
    std::memcpy(&vector, values, sizeof values);
    return vector;
}

}  // namespace

#define ONE(NAME, LANES, VECTOR, ACCURACY, FUNCTION)                                        \
    extern "C" VECTOR Sleef_##NAME##f##LANES##_u##ACCURACY(VECTOR x);                       \
    extern "C" VECTOR Sleef_##NAME##f##LANES##_u##ACCURACY(VECTOR x) {                      \
        return each<LANES>(x, [](float value) { return FUNCTION(value); });                 \
    }

#define TWO(NAME, LANES, VECTOR, ACCURACY, FUNCTION)                                        \
    extern "C" VECTOR Sleef_##NAME##f##LANES##_u##ACCURACY(VECTOR x, VECTOR y);             \
    extern "C" VECTOR Sleef_##NAME##f##LANES##_u##ACCURACY(VECTOR x, VECTOR y) {            \
        return each<LANES>(x, y, [](float one, float other) { return FUNCTION(one, other); }); \
    }

#define ALL(LANES, VECTOR)                        \
    ONE(exp, LANES, VECTOR, 10, exp_of)           \
    ONE(tanh, LANES, VECTOR, 10, tanh_of)         \
    ONE(exp2, LANES, VECTOR, 10, std::exp2)       \
    ONE(expm1, LANES, VECTOR, 10, std::expm1)     \
    ONE(log, LANES, VECTOR, 10, std::log)         \
    ONE(log2, LANES, VECTOR, 10, std::log2)       \
    ONE(log10, LANES, VECTOR, 10, std::log10)     \
    ONE(log1p, LANES, VECTOR, 10, std::log1p)     \
    ONE(erf, LANES, VECTOR, 10, std::erf)         \
    ONE(sinh, LANES, VECTOR, 10, std::sinh)       \
    ONE(cosh, LANES, VECTOR, 10, std::cosh)       \
    ONE(sin, LANES, VECTOR, 35, std::sin)         \
    ONE(cos, LANES, VECTOR, 35, std::cos)         \
    ONE(tan, LANES, VECTOR, 10, std::tan)         \
    ONE(asin, LANES, VECTOR, 10, std::asin)       \
    ONE(acos, LANES, VECTOR, 10, std::acos)       \
    ONE(atan, LANES, VECTOR, 10, std::atan)       \
    TWO(atan2, LANES, VECTOR, 10, std::atan2)     \
    TWO(pow, LANES, VECTOR, 10, std::pow)

#if defined(__AVX512F__)
ALL(16, __m512)
#endif
ALL(8, __m256)

#endif
