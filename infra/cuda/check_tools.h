// What checks of kernels are made with: numbers that look like chance and are the same everywhere, and a count of those that are wrong.
#pragma once

#include <cstdio>
#include <random>

#include "device.cuh"

static std::mt19937 dice(20261122);
static int faults = 0;

static float number(float spread = 1.0f) { return std::uniform_real_distribution<float>(-spread, spread)(dice); }
static std::vector<float> floats(size_t count, float spread = 1.0f) {
  std::vector<float> out(count);
  for (float& x : out) x = number(spread);
  return out;
}
static std::vector<bf16> halves(size_t count, float spread = 1.0f) {
  std::vector<bf16> out(count);
  for (bf16& x : out) x = bf16(rounded(number(spread)));
  return out;
}

static void expect(const char* what, double got, double wanted, double tolerance) {
  if (std::abs(got - wanted) <= tolerance * std::max(1.0, std::abs(wanted))) return;
  if (++faults <= 20) std::printf("%s: %g, should be %g\n", what, got, wanted);
}
