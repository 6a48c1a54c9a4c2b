// 16-bit floating point, by bits: portable, and free of branches so that loops vectorize.
#pragma once

#include <cstdint>
#include <cstring>

#include "number.hpp"

namespace torchopt {

TORCHOPT_INLINE float as_float(uint32_t bits) {
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

TORCHOPT_INLINE uint32_t as_bits(float value) {
  uint32_t result;
  memcpy(&result, &value, sizeof result);
  return result;
}

TORCHOPT_INLINE float from_bfloat16(uint16_t half) { return as_float(uint32_t(half) << 16); }

// rounds to nearest, ties to even
TORCHOPT_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

TORCHOPT_INLINE float from_float16(uint16_t half) {
  const uint32_t magnitude = uint32_t(half & 0x7fffu) << 13;
  // the exponent's bias differs by 112; the product also normalizes subnormal numbers
  const uint32_t finite = as_bits(as_float(magnitude) * as_float(0x77800000u));
  const uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
  return as_float(bits | uint32_t(half & 0x8000u) << 16);
}

// rounds to nearest, ties to even
TORCHOPT_INLINE uint16_t to_float16(float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal =
      (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // adding 0.5 leaves the digits of a subnormal result in the last bits
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return uint16_t(sign | result);
}

}  // namespace torchopt
