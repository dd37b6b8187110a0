// Checks of what stands around matrix products (stored.cu, eights.cu), as check.cpp does of all else.
#pragma once

#include "check_tools.h"
#include "eights.cu"
#include "stored.cu"

// What stands around products of stored blocks.
static void stored() {
  const uint32_t rows = 3, width = 200, stride = 264, column = 40;
  const auto in = halves(rows * width);
  std::vector<float> out(rows * width);
  launch({3}, 32, [&] { widen(out.data(), in.data(), rows * width); });
  for (uint32_t i = 0; i < rows * width; ++i) expect("widen", out[i], wide(in[i]), 0.0);
  const auto rows_by = floats(rows), columns_by = floats(width);
  const auto product = floats(rows * width), there = floats(rows * stride);
  std::vector<float> placed = there, added = there, scaled = product;
  std::vector<bf16> rounded_to = halves(rows * stride);
  const std::vector<bf16> rounded_there = rounded_to;
  const auto put = [&](void* to, const float* from, uint32_t form, float factor) {
    launch({rows, 2}, 128, [&] { settle(to, from, nullptr, nullptr, width, stride, column, form, factor); });
  };
  put(rounded_to.data(), product.data(), ROUNDED, 1.0f);
  put(placed.data(), product.data(), FLOATS, 0.25f);
  put(added.data(), product.data(), ADDED, -2.0f);
  launch({rows, 2}, 128, [&] { settle(scaled.data(), scaled.data(), rows_by.data(), columns_by.data(), width, width, 0, FLOATS, 3.0f); });
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t i = 0; i < stride; ++i) {
      const uint32_t at = r * stride + i, from = r * width + i - column;
      const bool inside = i >= column && i < column + width;
      const double x = inside ? product[from] : 0.0;
      expect("settle, rounded", wide(rounded_to[at]), inside ? x : double(wide(rounded_there[at])), 0.005);
      expect("settle, floats", placed[at], inside ? 0.25 * x : there[at], 1e-6);
      expect("settle, added", added[at], inside ? there[at] - 2.0 * x : there[at], 1e-6);
      if (inside) expect("settle, scaled in place", scaled[from], 3.0 * x * rows_by[r] * columns_by[i - column], 1e-6);
    }
  std::vector<uint16_t> matrix(20 * 35), some(3 * 35);
  for (uint32_t i = 0; i < matrix.size(); ++i) matrix[i] = i;
  const std::vector<uint32_t> wanted = {19, 0, 7};
  launch({1}, 128, [&] { gather_blocks(some.data(), matrix.data(), wanted.data(), 3, 35); });
  for (uint32_t i = 0; i < some.size(); ++i) expect("gather_blocks", some[i], wanted[i / 35] * 35 + i % 35, 0.0);
}

// The number that a byte of E4M3 is.
static double of_eight(uint8_t byte) {
  const int exponent = byte >> 3 & 15, rest = byte & 7;
  if (exponent == 15 && rest == 7) return NAN;
  const double size = exponent == 0 ? std::ldexp(rest, -9) : std::ldexp(8 + rest, exponent - 10);
  return byte & 0x80 ? -size : size;
}

// 8-bit floats: each number's nearest, and rows with their scales.
static void eight_bits() {
  const auto nearest = [](double x) {
    double best = 0.0;
    for (int byte = 0; byte < 256; ++byte) {
      const double one = of_eight(byte);
      const double nearer = std::abs(best - x) - std::abs(one - x);
      // Of two that are as near the even one, whose fraction ends with 0.
      if (nearer > 0.0 || (nearer == 0.0 && byte % 2 == 0)) best = one;
    }
    return best;
  };
  for (int i = -2000; i <= 2000; ++i)
    for (int exponent : {-12, -9, -7, -2}) {
      const float x = std::ldexp(float(i), exponent);
      expect("eight", of_eight(eight(x)), nearest(x), 0.0);
    }
  for (int byte = 0; byte < 256; ++byte)
    if (!std::isnan(of_eight(byte))) expect("eight of its own", of_eight(eight(float(of_eight(byte)))), of_eight(byte), 0.0);
  expect("eight, too large", of_eight(eight(1e9f)), 448.0, 0.0);
  expect("eight, no number", std::isnan(of_eight(eight(NAN))) ? 1.0 : 0.0, 1.0, 0.0);
  const uint32_t rows = 5, width = 272;
  auto x = halves(rows * width, 30.0f);
  for (uint32_t i = 0; i < width; ++i) x[3 * width + i] = 0, x[4 * width + i] = bf16(rounded(number(1e-38f)));
  std::vector<uint8_t> out(rows * width);
  std::vector<float> scales(rows);
  launch({2}, 128, [&] { eights(out.data(), scales.data(), x.data(), rows, width); });
  for (uint32_t r = 0; r < rows; ++r) {
    double most = 0.0;
    for (uint32_t i = 0; i < width; ++i) most = std::max(most, std::abs(double(wide(x[r * width + i]))));
    expect("scales", scales[r], most / 448.0, 1e-6);
    for (uint32_t i = 0; i < width; ++i)
      expect("eights", of_eight(out[r * width + i]) * scales[r] / std::max(most, 1e-9), wide(x[r * width + i]) / std::max(most, 1e-9), 0.036);
  }
}
