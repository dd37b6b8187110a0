// What candle's kernels for GGUF's blocks (candle-kernels 0.11.1, MMVQ and MMQ) do with the engine's buffers, in plain loops, behind the
// part of the CUDA runtime that starts them: driver_on_host.cpp includes it. It shows that the engine gives them the right matrices,
// sizes and strides, and as much memory as they touch; that those kernels compute right is candle's to show. Blocks are read as
// ggml lays them out.
#pragma once

#include <string>
#include <unordered_map>

namespace blocks {

inline float half(const uint8_t* from) {
  const uint32_t bits = from[0] | uint32_t(from[1]) << 8, sign = bits >> 15, exponent = bits >> 10 & 31, rest = bits & 1023;
  const float size = exponent == 0    ? std::ldexp(float(rest), -24)
                     : exponent == 31 ? (rest ? NAN : INFINITY)
                                      : std::ldexp(float(1024 + rest), int(exponent) - 25);
  return sign ? -size : size;
}

// Rounds to 11 bits, which is what a scale loses; nothing here is so small or large that more would be lost.
inline float halved(float x) {
  if (x == 0.0f || !std::isfinite(x)) return x;
  int exponent;
  const float part = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(part, 11)), exponent - 11);
}

inline void put_half(uint8_t* to, float x) {
  int exponent = 0;
  const float part = std::frexp(std::abs(halved(x)), &exponent);
  uint32_t bits = std::signbit(x) ? 0x8000 : 0;
  if (part != 0.0f && exponent + 14 > 0) bits |= uint32_t(exponent + 14) << 10 | (uint32_t(std::ldexp(part, 11)) & 1023);
  else if (part != 0.0f) bits |= uint32_t(std::nearbyint(std::ldexp(std::abs(x), 24)));
  to[0] = bits & 255;
  to[1] = bits >> 8;
}

// ggml's numbers of the types.
enum Type { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

struct Size {
  uint32_t numbers, bytes;
};

inline Size size_of(int type) {
  static const std::map<int, Size> sizes = {{Q4_0, {32, 18}},  {Q4_1, {32, 20}},  {Q5_0, {32, 22}},   {Q5_1, {32, 24}},
                                            {Q8_0, {32, 34}},  {Q2_K, {256, 84}}, {Q3_K, {256, 110}}, {Q4_K, {256, 144}},
                                            {Q5_K, {256, 176}}, {Q6_K, {256, 210}}};
  return sizes.at(type);
}

// Scale and smallest value of one of the eight parts of a block of Q4_K or Q5_K, 6 bits each.
inline std::pair<float, float> six_bits(const uint8_t* q, int part) {
  if (part < 4) return {q[part] & 63, q[part + 4] & 63};
  return {(q[part + 4] & 15) | (q[part - 4] >> 6) << 4, (q[part + 4] >> 4) | (q[part] >> 6) << 4};
}

// The numbers of a block.
inline void read(int type, const uint8_t* b, float* out) {
  const auto small = [&](int head, bool fifth, float d, float m) {
    const uint8_t* q = b + head + (fifth ? 4 : 0);
    uint32_t high = 0;
    if (fifth) std::memcpy(&high, b + head, 4);
    for (int i = 0; i < 32; ++i) {
      const int number = (i < 16 ? q[i] & 15 : q[i - 16] >> 4) | (fifth ? int(high >> i & 1) << 4 : 0);
      out[i] = d * float(number) + m;
    }
  };
  switch (type) {
    case Q4_0: return small(2, false, half(b), -8.0f * half(b));
    case Q4_1: return small(4, false, half(b), half(b + 2));
    case Q5_0: return small(2, true, half(b), -16.0f * half(b));
    case Q5_1: return small(4, true, half(b), half(b + 2));
    case Q8_0:
      for (int i = 0; i < 32; ++i) out[i] = half(b) * float(int8_t(b[2 + i]));
      return;
    case Q2_K:
      for (int i = 0; i < 256; ++i) {
        const int scale = b[i / 16], number = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        out[i] = half(b + 80) * float((scale & 15) * number) - half(b + 82) * float(scale >> 4);
      }
      return;
    case Q3_K:
      for (int i = 0; i < 256; ++i) {
        const uint8_t* s = b + 96;
        const int part = i / 16, low = part < 8 ? s[part] & 15 : s[part - 8] >> 4;
        const int scale = low | (s[8 + part % 4] >> part / 4 * 2 & 3) << 4;
        const int number = b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        out[i] = half(b + 108) * float((scale - 32) * (number - (b[i % 32] >> i / 32 & 1 ? 0 : 4)));
      }
      return;
    case Q4_K:
    case Q5_K:
      for (int i = 0; i < 256; ++i) {
        const auto [scale, least] = six_bits(b + 4, i / 32);
        const uint8_t byte = b[(type == Q4_K ? 16 : 48) + i / 64 * 32 + i % 32];
        const int number = (i % 64 < 32 ? byte & 15 : byte >> 4) | (type == Q5_K ? (b[16 + i % 32] >> i / 32 & 1) << 4 : 0);
        out[i] = half(b) * scale * float(number) - half(b + 2) * least;
      }
      return;
    default:  // Q6_K
      for (int i = 0; i < 256; ++i) {
        const int in = i % 128, low = b[i / 128 * 64 + in % 64] >> in / 64 * 4 & 15;
        const int number = low | (b[128 + i / 128 * 32 + in % 32] >> in / 32 * 2 & 3) << 4;
        out[i] = half(b + 208) * float(int8_t(b[192 + i / 16])) * float(number - 32);
      }
  }
}

// Brings `count` floats to 8 bits; their scale.
inline float quantise(const float* x, uint32_t count, int8_t* to) {
  float most = 0.0f;
  for (uint32_t i = 0; i < count; ++i) most = std::max(most, std::abs(x[i]));
  for (uint32_t i = 0; i < count; ++i) to[i] = most == 0.0f ? 0 : int8_t(std::round(x[i] * 127.0f / most));
  return most / 127.0f;
}

inline float sum_of(const float* x, uint32_t count) {
  float sum = 0.0f;
  for (uint32_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

// ---- activations: `[rows, padded / 32]` blocks of 36 bytes, or `[padded / 128, rows]` of 144 ----

inline void for_vectors(const bf16* x, uint8_t* out, int columns, int padded, uint32_t rows) {
  for (uint32_t row = 0; row < rows; ++row)
    for (int block = 0; block < padded / 32; ++block) {
      float part[32];
      for (int i = 0; i < 32; ++i) part[i] = block * 32 + i < columns ? wide(x[size_t(row) * columns + block * 32 + i]) : 0.0f;
      uint8_t* to = out + (size_t(row) * (padded / 32) + block) * 36;
      put_half(to, quantise(part, 32, reinterpret_cast<int8_t*>(to + 4)));
      put_half(to + 2, sum_of(part, 32));
    }
}

// As mmq_q8_1_ds_layout of candle-kernels numbers them.
enum Layout { PLAIN = 0, SUMS = 1, FINE_SUMS = 2 };

inline void for_tiles(int layout, const float* x, uint8_t* out, int64_t columns, int64_t padded, int rows) {
  for (int row = 0; row < rows; ++row)
    for (int64_t block = 0; block < padded / 128; ++block) {
      float part[128];
      for (int i = 0; i < 128; ++i) part[i] = block * 128 + i < columns ? x[row * columns + block * 128 + i] : 0.0f;
      uint8_t* to = out + (block * rows + row) * 144;
      std::memset(to, 0, 16);
      const int together = layout == FINE_SUMS ? 64 : 32;
      for (int at = 0; at < 128; at += together) {
        const float scale = quantise(part + at, together, reinterpret_cast<int8_t*>(to + 16 + at));
        if (layout == PLAIN) std::memcpy(to + at / 32 * 4, &scale, 4);
        if (layout == SUMS) put_half(to + at / 32 * 4, scale), put_half(to + at / 32 * 4 + 2, sum_of(part + at, 32));
        if (layout == FINE_SUMS) put_half(to + at / 64 * 2, scale);
      }
      for (int at = 0; layout == FINE_SUMS && at < 96; at += 16) put_half(to + 4 + at / 8, sum_of(part + at, 16));
    }
}

inline int layout_of(int type) {
  return type == Q2_K ? FINE_SUMS : type == Q8_0 || type == Q5_0 || type == Q3_K || type == Q6_K ? PLAIN : SUMS;
}

// ---- products ----

// `to(column of y, row of x, product)`; `y(column, k)` is a number of the other side.
template <typename Other, typename To>
void multiply(int type, const uint8_t* x, uint32_t rows, uint32_t columns, uint32_t others, Other other, To to) {
  const Size size = size_of(type);
  std::vector<float> y(size_t(others) * columns), row(columns);
  for (uint32_t j = 0; j < others; ++j)
    for (uint32_t k = 0; k < columns; ++k) y[size_t(j) * columns + k] = other(j, k);
  for (uint32_t i = 0; i < rows; ++i) {
    for (uint32_t b = 0; b < columns / size.numbers; ++b)
      read(type, x + (size_t(i) * (columns / size.numbers) + b) * size.bytes, row.data() + b * size.numbers);
    for (uint32_t j = 0; j < others; ++j) {
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (uint32_t k = 0; k < columns; ++k) sum += row[k] * y[size_t(j) * columns + k];
      to(j, i, sum);
    }
  }
  // Behind the last row kernels read zeros, to the end of the last 256 columns.
  const uint8_t* end = x + size_t(rows) * (columns / size.numbers) * size.bytes;
  const uint32_t more = (columns + 255) / 256 * 256 - columns;
  for (uint32_t i = 0; i < more / size.numbers * size.bytes; ++i)
    if (end[i] != 0) std::abort();
}

inline void vectors(int type, bool rounded, const uint8_t* x, const uint8_t* y, void* out, int columns, int rows,
                    int y_stride, int out_stride, uint32_t others) {
  const auto other = [=](uint32_t j, uint32_t k) {
    const uint8_t* block = y + (size_t(j) * y_stride + k / 32) * 36;
    return half(block) * float(int8_t(block[4 + k % 32]));
  };
  multiply(type, x, rows, columns, others, other, [=](uint32_t j, uint32_t i, float product) {
    const size_t at = size_t(j) * out_stride + i;
    if (rounded) static_cast<bf16*>(out)[at] = narrow(product);
    else static_cast<float*>(out)[at] = product;
  });
}

inline void tiles(int type, int width, uint32_t processors, const uint8_t* x, const uint8_t* y, float* out, float* shared,
                  int columns, int rows, int others, int stride) {
  if (uint32_t(stride) != columns / size_of(type).numbers) std::abort();
  const auto other = [=](uint32_t j, uint32_t k) {
    const uint8_t* block = y + (size_t(k / 128) * others + j) * 144;
    float scale;
    if (layout_of(type) == PLAIN) std::memcpy(&scale, block + k % 128 / 32 * 4, 4);
    else scale = half(block + (layout_of(type) == SUMS ? k % 128 / 32 * 4 : k % 128 / 64 * 2));
    return scale * float(int8_t(block[16 + k % 128]));
  };
  multiply(type, x, rows, columns, others, other,
           [=](uint32_t j, uint32_t i, float product) { out[size_t(j) * rows + i] = product; });
  // What tiles touch besides: the last one's columns behind `others`, and a tile that each multiprocessor may leave.
  const size_t groups = size_t(columns + 255) / 256 * 2, last = (groups - 1) * others + (others + width - 1) / width * width;
  static_cast<void>(*static_cast<const volatile uint8_t*>(y + last * 144 - 1));
  if (shared != nullptr) std::memset(shared, 0xff, size_t(processors) * width * 128 * sizeof(float));
}

// ---- kernels by name ----

template <typename T>
T argument(void** from, int at) {
  return *static_cast<T*>(from[at]);
}

inline int number_behind(const std::string& name, const char* what) {
  const size_t at = name.find(what);
  return at == std::string::npos ? -1 : std::atoi(name.c_str() + at + std::strlen(what));
}

inline int type_of(const std::string& name) {
  static const std::map<std::string, int> types = {{"q4_0", Q4_0}, {"q4_1", Q4_1}, {"q5_0", Q5_0}, {"q5_1", Q5_1}, {"q8_0", Q8_0},
                                                   {"q2_k", Q2_K}, {"q3_k", Q3_K}, {"q4_k", Q4_K}, {"q5_k", Q5_K}, {"q6_k", Q6_K}};
  return types.at(name.substr(std::strlen("mmvq_gguf_"), 4));
}

// What a kernel of this name does with these arguments; nothing if it is not known.
inline std::function<void()> bind(const std::string& name, dim3 grid, void** a) {
  const auto bytes = [&](int at) { return argument<const uint8_t*>(a, at); };
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (name == "mmvq_gguf_quantize_q8_1_bf16")
    return std::bind(for_vectors, argument<const bf16*>(a, 0), argument<uint8_t*>(a, 1), argument<int>(a, 2), argument<int>(a, 3), grid.y);
  if (has("mmvq_gguf_"))
    return std::bind(vectors, type_of(name), has("_bf16_"), bytes(0), bytes(1), argument<void*>(a, 2), argument<int>(a, 3),
                     argument<int>(a, 4), argument<int>(a, 5), argument<int>(a, 6), uint32_t(number_behind(name, "plain_cuda")));
  if (has("quantize_mmq_q8_1") && argument<const int*>(a, 1) == nullptr)
    return std::bind(for_tiles, number_behind(name, "mmq_q8_1_ds_layout"), argument<const float*>(a, 0), argument<uint8_t*>(a, 2),
                     argument<int64_t>(a, 3), argument<int64_t>(a, 7), argument<int>(a, 8));
  // Tiles that multiprocessors share are whole above.
  if (has("mul_mat_q_stream_k_fixup")) return [] {};
  if (has("mul_mat_q"))
    return std::bind(tiles, number_behind(name, "ggml_type"), number_behind(name, "ELi"), grid.x, bytes(0), bytes(1),
                     argument<float*>(a, 4), argument<float*>(a, 5), argument<int>(a, 6), argument<int>(a, 7), argument<int>(a, 8),
                     argument<int>(a, 9));
  return nullptr;
}

// Names of kernels by their place in the program.
inline std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> names;
  return names;
}
}  // namespace blocks
