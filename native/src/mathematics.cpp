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

template <typename Number, int lanes, typename Vector, typename Function>
inline Vector each(Vector vector, Function function) {
    Number values[lanes];
    std::memcpy(values, &vector, sizeof values);
    for (Number &value : values) value = function(value);
    std::memcpy(&vector, values, sizeof values);
    return vector;
}

template <typename Number, int lanes, typename Vector, typename Function>
inline Vector each(Vector vector, Vector other, Function function) {
    Number values[lanes], others[lanes];
    std::memcpy(values, &vector, sizeof values);
    std::memcpy(others, &other, sizeof others);
    for (int i = 0; i < lanes; ++i) values[i] = function(values[i], others[i]);
    std::memcpy(&vector, values, sizeof values);
    return vector;
}

}  // namespace

// NUMBER is float or double, SUFFIX what SLEEF's name has behind the function's: lanes, and the accuracy where it has one.
#define ONE(NAME, NUMBER, LANES, SUFFIX, VECTOR, FUNCTION)                                          \
    extern "C" VECTOR Sleef_##NAME##SUFFIX(VECTOR x);                                               \
    extern "C" VECTOR Sleef_##NAME##SUFFIX(VECTOR x) {                                              \
        return each<NUMBER, LANES>(x, [](NUMBER value) { return FUNCTION(value); });                \
    }

#define TWO(NAME, NUMBER, LANES, SUFFIX, VECTOR, FUNCTION)                                          \
    extern "C" VECTOR Sleef_##NAME##SUFFIX(VECTOR x, VECTOR y);                                     \
    extern "C" VECTOR Sleef_##NAME##SUFFIX(VECTOR x, VECTOR y) {                                    \
        return each<NUMBER, LANES>(x, y, [](NUMBER one, NUMBER other) { return FUNCTION(one, other); }); \
    }

#define ALL(NUMBER, LANES, KIND, VECTOR, EXP, TANH)              \
    ONE(exp, NUMBER, LANES, KIND##_u10, VECTOR, EXP)             \
    ONE(tanh, NUMBER, LANES, KIND##_u10, VECTOR, TANH)           \
    ONE(exp2, NUMBER, LANES, KIND##_u10, VECTOR, std::exp2)      \
    ONE(expm1, NUMBER, LANES, KIND##_u10, VECTOR, std::expm1)    \
    ONE(log, NUMBER, LANES, KIND##_u10, VECTOR, std::log)        \
    ONE(log2, NUMBER, LANES, KIND##_u10, VECTOR, std::log2)      \
    ONE(log10, NUMBER, LANES, KIND##_u10, VECTOR, std::log10)    \
    ONE(log1p, NUMBER, LANES, KIND##_u10, VECTOR, std::log1p)    \
    ONE(erf, NUMBER, LANES, KIND##_u10, VECTOR, std::erf)        \
    ONE(sinh, NUMBER, LANES, KIND##_u10, VECTOR, std::sinh)      \
    ONE(cosh, NUMBER, LANES, KIND##_u10, VECTOR, std::cosh)      \
    ONE(sin, NUMBER, LANES, KIND##_u10, VECTOR, std::sin)        \
    ONE(cos, NUMBER, LANES, KIND##_u10, VECTOR, std::cos)        \
    ONE(tan, NUMBER, LANES, KIND##_u10, VECTOR, std::tan)        \
    ONE(asin, NUMBER, LANES, KIND##_u10, VECTOR, std::asin)      \
    ONE(acos, NUMBER, LANES, KIND##_u10, VECTOR, std::acos)      \
    ONE(atan, NUMBER, LANES, KIND##_u10, VECTOR, std::atan)      \
    ONE(asinh, NUMBER, LANES, KIND##_u10, VECTOR, std::asinh)    \
    ONE(acosh, NUMBER, LANES, KIND##_u10, VECTOR, std::acosh)    \
    ONE(atanh, NUMBER, LANES, KIND##_u10, VECTOR, std::atanh)    \
    ONE(lgamma, NUMBER, LANES, KIND##_u10, VECTOR, std::lgamma)  \
    ONE(erfc, NUMBER, LANES, KIND##_u15, VECTOR, std::erfc)      \
    TWO(atan2, NUMBER, LANES, KIND##_u10, VECTOR, std::atan2)    \
    TWO(pow, NUMBER, LANES, KIND##_u10, VECTOR, std::pow)        \
    TWO(hypot, NUMBER, LANES, KIND##_u05, VECTOR, std::hypot)    \
    TWO(fmod, NUMBER, LANES, KIND, VECTOR, std::fmod)            \
    TWO(nextafter, NUMBER, LANES, KIND, VECTOR, std::nextafter)  \
    TWO(copysign, NUMBER, LANES, KIND, VECTOR, std::copysign)

#define ROUGH(LANES, KIND, VECTOR)                                \
    ONE(sin, float, LANES, KIND##_u35, VECTOR, std::sin)         \
    ONE(cos, float, LANES, KIND##_u35, VECTOR, std::cos)

#if defined(__AVX512F__)
ALL(float, 16, f16, __m512, exp_of, tanh_of)
ROUGH(16, f16, __m512)
ALL(double, 8, d8, __m512d, std::exp, std::tanh)
#endif
ALL(float, 8, f8, __m256, exp_of, tanh_of)
ROUGH(8, f8, __m256)
ALL(double, 4, d4, __m256d, std::exp, std::tanh)

#endif
