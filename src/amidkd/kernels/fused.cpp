// The CPU row kernel: values of n tokens and the gradient with respect to the student's logits, one token after
// another.
//
// A row is read once into scratch memory that stays in the core's cache; the sweeps over it are
//   open      both rows to float32, divided by the temperature; exponentials and log-sum-exp
//   mix       the assistant r of a term: log(m / source), responsibility, normaliser
//   compare   the divergence, and its slopes
//   finish    A - q sum(A), to the gradient's own dtype
// KL(k||r) has sums that are homogeneous in the normaliser, so that its mix and compare are one sweep.
// `block.py` and `terms.py` say what the arguments mean, docs/design/kernels.md has the formulas.
//
// The second half of the file is compiled once for every instruction set (the file includes itself), with vectors as
// wide as the registers; which one runs is chosen at run time.

#ifndef AMIDKD_WIDTH

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

extern "C" {

struct AmidkdMatrix {
    void* data;           // null: absent
    const int64_t* rows;  // row of each token, or null for 0, 1, 2, ...
    int64_t stride;       // elements from one row to the next
    int32_t dtype;        // 0 float32, 1 bfloat16, 2 float16
    int32_t unused;
};

struct AmidkdTerm {
    double weight, a, b, factor;
    const double* s;
    const double* lam;
    int64_t s_step, lam_step;  // 0: one value for all tokens
    float series[10];
    int32_t form, anchor, anchor_first, detached;
};

struct AmidkdCall {
    int64_t count, vocabulary;
    AmidkdMatrix student, teacher, gradient;
    const AmidkdTerm* terms;
    int64_t term_count;
    double temperature, cross_entropy_weight;
    const int64_t* labels;
    const float* scale;
    float* values;
    float* divergences;
    float* cross_entropies;
    float* metrics;  // [7, count]
    int32_t assistant, threads, instructions, unused;
};
}

namespace amidkd {

enum Form { KL = 0, JEFFREYS = 1, TOTAL_VARIATION = 2, JENSEN_SHANNON = 3, POWER = 4 };
enum Type { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr int LANES = 32;         // widest vector, in floats; scratch rows are padded to it
constexpr int FLUSH = 32;         // vectors that are summed in float32 before the sum goes on in float64
constexpr float NEAR_ONE = 0.5f;  // of |log Z|, as in amidkd.maths.mixture
constexpr float LARGEST_EXPONENT =
    88.722839f - 20.0f;         // log(largest float) less HEADROOM of amidkd.maths.divergence.forms
constexpr double TINY = 1e-20;  // a normaliser below may have lost tokens to underflow

// What a thread keeps from call to call, so that its pages are touched once.
struct Scratch {
    float* data = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(data); }
    float* need(size_t floats) {
        if (floats > size) {
            std::free(data);
            size = (floats + LANES - 1) / LANES * LANES;
            data = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
            if (!data) size = 0;
        }
        return data;
    }
};

struct Job {
    const AmidkdCall* call;
    std::atomic<int64_t> next{0};
    std::atomic<int> failed{0};
    int64_t batch = 1;
    explicit Job(const AmidkdCall* c) : call(c) {}
};

inline float widen16(uint16_t h, int dtype) {
    uint32_t bits;
    float out;
    if (dtype == BFLOAT16) {
        bits = uint32_t(h) << 16;
        std::memcpy(&out, &bits, 4);
        return out;
    }
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 31)
        bits = sign | 0x7F800000u | (fraction << 13);
    else if (exponent)
        bits = sign | ((exponent + 112) << 23) | (fraction << 13);
    else {
        out = std::ldexp(float(fraction), -24);
        return sign ? -out : out;
    }
    std::memcpy(&out, &bits, 4);
    return out;
}

inline uint16_t narrow16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    const uint32_t size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return uint16_t(sign | 0x7E00);
    if (size >= 0x477FF000u) return uint16_t(sign | 0x7C00);
    if (size < 0x38800000u) {  // subnormal: a multiple of 2^-24, rounded to even by the addition
        float shifted;
        std::memcpy(&shifted, &size, 4);
        shifted += 0.5f;
        uint32_t sum;
        std::memcpy(&sum, &shifted, 4);
        return uint16_t(sign | (sum - 0x3F000000u));
    }
    return uint16_t(sign | ((size - 0x38000000u + 0xFFFu + ((size >> 13) & 1u)) >> 13));
}

}  // namespace amidkd

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define AMIDKD_WIDTH 16
#define AMIDKD_NAME avx512
#include "fused.cpp"
#undef AMIDKD_WIDTH
#undef AMIDKD_NAME
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define AMIDKD_WIDTH 8
#define AMIDKD_NAME avx2
#include "fused.cpp"
#undef AMIDKD_WIDTH
#undef AMIDKD_NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#define AMIDKD_WIDTH 4
#define AMIDKD_NAME portable
#include "fused.cpp"

extern "C" {

// 0 portable, 1 AVX2, 2 AVX-512: the best that this machine has.
int32_t amidkd_instructions(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// Sizes of the structures, so that the caller can tell a library of another version.
int64_t amidkd_layout(void) {
    return int64_t(sizeof(AmidkdCall)) * 1000000 + sizeof(AmidkdTerm) * 1000 + sizeof(AmidkdMatrix);
}
}

static void amidkd_work(void* argument) {
    auto* job = static_cast<amidkd::Job*>(argument);
#if defined(__x86_64__)
    if (job->call->instructions == 2) return amidkd::avx512::work(*job);
    if (job->call->instructions == 1) return amidkd::avx2::work(*job);
#endif
    amidkd::portable::work(*job);
}

// Runs on the threads that torch keeps (its OpenMP runtime), so that two pools never compete; else on threads of its
// own.
static void amidkd_parallel(amidkd::Job& job, int threads) {
    if (threads <= 1) return amidkd_work(&job);
#if !defined(_WIN32)
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    if (parallel) return parallel(amidkd_work, &job, unsigned(threads), 0);
#endif
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(amidkd_work, static_cast<void*>(&job));
    amidkd_work(&job);
    for (auto& other : others) other.join();
}

extern "C" {

// Computes a block; 0, or 1 where there was no memory for the scratch rows.
int32_t amidkd_run(const AmidkdCall* call) {
    if (call->count <= 0) return 0;
    amidkd::Job job(call);
    const int64_t v = call->vocabulary > 0 ? call->vocabulary : 1;
    job.batch = 8192 / v > 1 ? 8192 / v : 1;
    const int64_t useful = (call->count + job.batch - 1) / job.batch;
    amidkd_parallel(job, int(useful < call->threads ? useful : call->threads));
    return job.failed.load();
}
}

#else  // AMIDKD_WIDTH: the sweeps, for vectors of that many floats

namespace amidkd {
namespace AMIDKD_NAME {

#define AMIDKD_INLINE static inline __attribute__((always_inline))
constexpr int HALF = AMIDKD_WIDTH, W = 2 * HALF;
typedef float rf __attribute__((vector_size(HALF * 4)));
typedef int32_t ri __attribute__((vector_size(HALF * 4)));
typedef uint32_t ru __attribute__((vector_size(HALF * 4)));
typedef uint16_t rh __attribute__((vector_size(HALF * 2)));

// Two registers side by side. The sweeps are long chains of dependent operations; two of them, interleaved, keep the
// processor's short queues busy.
struct vf {
    rf a, b;
};
struct vi {
    ri a, b;
};

// By subtraction, since x - 0 is x for every x, and compilers leave 0 + x to be computed.
AMIDKD_INLINE vf full(float x) { return {x - rf{}, x - rf{}}; }
AMIDKD_INLINE vi full(int32_t x) { return {x - ri{}, x - ri{}}; }

#define AMIDKD_ARITHMETIC(OP)                                                     \
    AMIDKD_INLINE vf operator OP(vf x, vf y) { return {x.a OP y.a, x.b OP y.b}; } \
    AMIDKD_INLINE vf operator OP(vf x, float y) { return x OP full(y); }          \
    AMIDKD_INLINE vf operator OP(float x, vf y) { return full(x) OP y; }
AMIDKD_ARITHMETIC(+)
AMIDKD_ARITHMETIC(-)
AMIDKD_ARITHMETIC(*)
AMIDKD_ARITHMETIC(/)
#define AMIDKD_COMPARISON(OP)                                                     \
    AMIDKD_INLINE vi operator OP(vf x, vf y) { return {x.a OP y.a, x.b OP y.b}; } \
    AMIDKD_INLINE vi operator OP(vf x, float y) { return x OP full(y); }
AMIDKD_COMPARISON(<)
AMIDKD_COMPARISON(<=)
AMIDKD_COMPARISON(>)
AMIDKD_COMPARISON(==)
AMIDKD_COMPARISON(!=)
#define AMIDKD_INTEGERS(OP)                                                       \
    AMIDKD_INLINE vi operator OP(vi x, vi y) { return {x.a OP y.a, x.b OP y.b}; } \
    AMIDKD_INLINE vi operator OP(vi x, int32_t y) { return {x.a OP y, x.b OP y}; }
AMIDKD_INTEGERS(+)
AMIDKD_INTEGERS(-)
AMIDKD_INTEGERS(&)
AMIDKD_INTEGERS(|)
AMIDKD_INTEGERS(^)
AMIDKD_INTEGERS(==)
AMIDKD_INTEGERS(<<)
AMIDKD_INTEGERS(>>)
AMIDKD_INLINE vf operator-(vf x) { return {-x.a, -x.b}; }
AMIDKD_INLINE vi operator~(vi x) { return {~x.a, ~x.b}; }
AMIDKD_INLINE vf& operator+=(vf& x, vf y) { return x = x + y; }
AMIDKD_INLINE vf& operator-=(vf& x, vf y) { return x = x - y; }
AMIDKD_INLINE vi& operator|=(vi& x, vi y) { return x = x | y; }
AMIDKD_INLINE vi& operator&=(vi& x, vi y) { return x = x & y; }

AMIDKD_INLINE vf load(const float* p) {
    vf v;
    std::memcpy(&v.a, p, sizeof v.a);
    std::memcpy(&v.b, p + HALF, sizeof v.b);
    return v;
}
AMIDKD_INLINE void store(float* p, vf v) {
    std::memcpy(p, &v.a, sizeof v.a);
    std::memcpy(p + HALF, &v.b, sizeof v.b);
}
AMIDKD_INLINE vf pick(vi m, vf x, vf y) { return {m.a ? x.a : y.a, m.b ? x.b : y.b}; }
AMIDKD_INLINE vf keep(vi m, vf x) { return {m.a ? x.a : rf{}, m.b ? x.b : rf{}}; }
AMIDKD_INLINE vi bits(vf x) { return {(ri)x.a, (ri)x.b}; }
AMIDKD_INLINE vf floats(vi x) { return {(rf)x.a, (rf)x.b}; }
AMIDKD_INLINE vf numbers(vi x) { return {__builtin_convertvector(x.a, rf), __builtin_convertvector(x.b, rf)}; }
AMIDKD_INLINE vf magnitude(vf x) { return floats(bits(x) & 0x7FFFFFFF); }
AMIDKD_INLINE bool any(vi m) {
    const ri both = m.a | m.b;
    int32_t found = 0;
    for (int i = 0; i < HALF; ++i) found |= both[i];
    return found != 0;
}
AMIDKD_INLINE float largest(vf v) {
    float found = v.a[0];
    for (int i = 0; i < HALF; ++i) {
        found = v.a[i] > found ? v.a[i] : found;
        found = v.b[i] > found ? v.b[i] : found;
    }
    return found;
}

#if AMIDKD_WIDTH == 16
AMIDKD_INLINE vf larger(vf x, vf y) {  // y where x is NaN
    return {(rf)_mm512_max_ps((__m512)x.a, (__m512)y.a), (rf)_mm512_max_ps((__m512)x.b, (__m512)y.b)};
}
AMIDKD_INLINE vf smaller(vf x, vf y) {
    return {(rf)_mm512_min_ps((__m512)x.a, (__m512)y.a), (rf)_mm512_min_ps((__m512)x.b, (__m512)y.b)};
}
AMIDKD_INLINE vf square_root(vf x) { return {(rf)_mm512_sqrt_ps((__m512)x.a), (rf)_mm512_sqrt_ps((__m512)x.b)}; }
AMIDKD_INLINE vf reciprocal(vf x) {  // of normal numbers
    const vf guess = {(rf)_mm512_rcp14_ps((__m512)x.a), (rf)_mm512_rcp14_ps((__m512)x.b)};
    return guess * (2.0f - x * guess);
}
AMIDKD_INLINE vf deeper(vf x, vf y) {  // the lower one, if any is negative: by the pipes that arithmetic leaves free
    return {(rf)_mm512_max_epu32((__m512i)x.a, (__m512i)y.a), (rf)_mm512_max_epu32((__m512i)x.b, (__m512i)y.b)};
}
constexpr bool STREAMS = true;
AMIDKD_INLINE void stream(float* p, vf v) {
    _mm512_stream_ps(p, (__m512)v.a);
    _mm512_stream_ps(p + HALF, (__m512)v.b);
}
AMIDKD_INLINE void streamed() { _mm_sfence(); }
AMIDKD_INLINE vi looked_up(rf table, vf index) {  // by the lowest four bits
    return {(ri)_mm512_permutexvar_ps((__m512i)index.a, (__m512)table),
            (ri)_mm512_permutexvar_ps((__m512i)index.b, (__m512)table)};
}

// e^x and e^x - 1 from y = UNIT x, |x| up to 87: 2^(y/16), the sixteenths from a table in a register. The rounding of y
// is one of x, which is small wherever e^x counts.
constexpr float UNIT = 23.083120346069336f;
AMIDKD_INLINE void exponential_of(vf y, vf& ex, vf& em1) {
    const rf table = {1.0f,
                      1.0442737340927124f,
                      1.0905077457427979f,
                      1.1387885808944702f,
                      1.1892070770263672f,
                      1.2418577671051025f,
                      1.2968395948410034f,
                      1.3542555570602417f,
                      1.4142135381698608f,
                      1.4768261909484863f,
                      1.5422108173370361f,
                      1.610490322113037f,
                      1.6817928552627563f,
                      1.7562521696090698f,
                      1.8340080976486206f,
                      1.9152065515518188f};
    const vf shifted = y + 12582912.0f;
    const vf f = y - (shifted - 12582912.0f);
    const vf g = ((f * 1.3550808034779038e-05f + 0.0009384123841300607f) * f + 0.043321698904037476f) * f;
    const vi root = looked_up(table, shifted);
    const vf scale = floats(root + ((bits(shifted) & ~15) << 19));
    const vf grown = scale * g;
    ex = grown + scale;
    em1 = grown + (scale - 1.0f);
}
#else
AMIDKD_INLINE vf larger(vf a, vf b) { return pick(a > b, a, b); }
AMIDKD_INLINE vf smaller(vf a, vf b) { return pick(a < b, a, b); }
AMIDKD_INLINE vf deeper(vf x, vf y) { return smaller(x, y); }
AMIDKD_INLINE vf square_root(vf x) {
    for (int i = 0; i < HALF; ++i) {
        x.a[i] = std::sqrt(x.a[i]);
        x.b[i] = std::sqrt(x.b[i]);
    }
    return x;
}
AMIDKD_INLINE vf reciprocal(vf x) { return 1.0f / x; }
constexpr bool STREAMS = false;
AMIDKD_INLINE void stream(float* p, vf v) { store(p, v); }
AMIDKD_INLINE void streamed() {}

// e^x and e^x - 1 from y = UNIT x, |x| up to 87: 2^y. The rounding of y is one of x, which is small wherever e^x
// counts.
constexpr float UNIT = 1.4426950216293335f;
AMIDKD_INLINE void exponential_of(vf y, vf& ex, vf& em1) {
    const vf shifted = y + 12582912.0f;
    const vf f = y - (shifted - 12582912.0f);
    vf g = f * 0.00015403510769829154f + 0.0013390849344432354f;
    g = g * f + 0.009618237614631653f;
    g = g * f + 0.05550357326865196f;
    g = g * f + 0.24022649228572845f;
    g = (g * f + 0.6931471824645996f) * f;
    const vf scale = floats((bits(shifted) - 0x4B400000 + 127) << 23);
    const vf grown = scale * g;
    ex = grown + scale;
    em1 = grown + (scale - 1.0f);
}
#endif

// The same for y <= 0, however low; below the normal range a number too small to count. NaN stays.
AMIDKD_INLINE void exponential_low(vf y, vf& ex, vf& em1) { exponential_of(larger(full(-87.0f * UNIT), y), ex, em1); }

// e^x and e^x - 1 for any x: 0 below the normal range, about 1e38 above it.
AMIDKD_INLINE void exponential(vf x, vf& ex, vf& em1) {
    exponential_of(smaller(full(88.0f), larger(full(-87.0f), x)) * UNIT, ex, em1);
    ex = keep(~(x < -87.0f), ex);
}

AMIDKD_INLINE vf exponential(vf x) {
    vf ex, em1;
    exponential(x, ex, em1);
    return ex;
}

// log(t) for t = 1 + y in (0, 1], with all digits where y is small.
AMIDKD_INLINE vf logarithm(vf y, vf t) {
    const vi k = (bits(t) - 0x3F3504F3) >> 23;
    const vf r = pick(k == 0, y, floats(bits(t) - (k << 23)) - 1.0f);
    vf g = r * 0.08700443059206009f - 0.14267590641975403f;
    g = g * r + 0.149148091673851f;
    g = g * r - 0.16577573120594025f;
    g = g * r + 0.19963058829307556f;
    g = g * r - 0.2500133812427521f;
    g = g * r + 0.3333390951156616f;
    g = (g * r - 0.5f) * (r * r) + r;
    return numbers(k) * 0.693147182f + g;
}

// (e^x - 1 - x) / x^2 for |x| <= CLOSE
constexpr float CLOSE = 0.25f;
AMIDKD_INLINE vf curvature(vf x) {
    return (((x * 0.0013895342126488686f + 0.008348839357495308f) * x + 0.04166671633720398f) * x +
            0.1666664183139801f) *
               x +
           0.5f;
}

AMIDKD_INLINE rf widen_half(const uint16_t* p, int dtype) {
    rh h;
    std::memcpy(&h, p, sizeof h);
    if (dtype == BFLOAT16) return (rf)(__builtin_convertvector(h, ru) << 16);
    rf out;
    for (int i = 0; i < HALF; ++i) out[i] = widen16(h[i], FLOAT16);
    return out;
}

AMIDKD_INLINE vf widen(const uint16_t* p, int dtype) { return {widen_half(p, dtype), widen_half(p + HALF, dtype)}; }

AMIDKD_INLINE void narrow_half(uint16_t* p, rf v, int dtype) {
    rh h;
    if (dtype == BFLOAT16) {
        const ru u = (ru)v;
        const ru rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
        h = __builtin_convertvector(v == v ? rounded : ru{} + 0x7FC0u, rh);
    } else {
        for (int i = 0; i < HALF; ++i) h[i] = narrow16(v[i]);
    }
    std::memcpy(p, &h, sizeof h);
}

AMIDKD_INLINE void narrow(uint16_t* p, vf v, int dtype) {
    narrow_half(p, v.a, dtype);
    narrow_half(p + HALF, v.b, dtype);
}

// A sum over a row: float32 in short runs, float64 across them.
typedef float rq __attribute__((vector_size(HALF * 2)));
typedef double rd __attribute__((vector_size(HALF * 4)));

struct Sum {
    vf run{};
    rd runs{};
};

AMIDKD_INLINE void flush(Sum& s) {
    const rf both = s.run.a + s.run.b;
    rq parts[2];
    std::memcpy(parts, &both, sizeof both);
    s.runs += __builtin_convertvector(parts[0], rd) + __builtin_convertvector(parts[1], rd);
    s.run = vf{};
}

AMIDKD_INLINE double in_all(const Sum& s) {
    double sum = 0;
    for (int i = 0; i < HALF / 2; ++i) sum += s.runs[i];
    return sum;
}

struct Row {
    int64_t size, vectors, whole;  // tokens of the vocabulary; vectors in all; full ones
    bool masked;                   // whether -inf occurs in either
    const float *zt, *zs;          // logits over the temperature, as float32
    float *buffer_t, *buffer_s, *p, *q, *core, *omega, *third, *extra;
    float lse_t, lse_s, apart, inv_t, inv_s;
};

// The mixture of a term at a token.
struct Mix {
    float s, inverse, lam, rest, threshold, only_p, only_q, level;
    float steepness;             // -|s| in the units of the exponential
    int32_t flip;                // the sign of s
    bool wide, geometric, pure;  // support is the union; s = 0; lambda is 0 or 1
};

struct Shape {
    float a, b, c, inv_a, inv_b, inv_c;
    bool a_zero, b_zero, c_zero, c_one, a_alone, b_alone;  // whether a mass that meets none is finite
    float alone_a, alone_b;
    const float* series;
    float radius;
};

struct Sums {
    Sum value, to_r, first, second;
    vi infinite{}, any_k{}, any_r{};
};

// One row of logits to float32, less what lies beyond the vocabulary; its maximum, and whether anything is masked.
static float load_row(const AmidkdMatrix& m, int64_t token, float factor, int64_t size, float* out, bool& masked) {
    const int64_t row = m.rows ? m.rows[token] : token;
    const int64_t whole = size / W;
    vf highest = full(-INFINITE);
    vi dead{};
    const auto* wide = static_cast<const float*>(m.data) + (m.dtype == FLOAT32 ? row * m.stride : 0);
    const auto* half = static_cast<const uint16_t*>(m.data) + (m.dtype == FLOAT32 ? 0 : row * m.stride);
    for (int64_t i = 0; i < whole; ++i) {
        const vf z = (m.dtype == FLOAT32 ? load(wide + i * W) : widen(half + i * W, m.dtype)) * factor;
        highest = larger(z, highest);
        dead |= z == -INFINITE;
        store(out + i * W, z);
    }
    float maximum = largest(highest);
    masked = masked || any(dead);
    for (int64_t i = whole * W; i < size; ++i) {
        const float z = (m.dtype == FLOAT32 ? wide[i] : widen16(half[i], m.dtype)) * factor;
        maximum = z > maximum ? z : maximum;
        masked = masked || z == -INFINITE;
        out[i] = z;
    }
    for (int64_t i = size; i < (size + W - 1) / W * W; ++i) out[i] = -INFINITE;
    return maximum;
}

// e^(z - maximum), and the sum.
static double exponentials(const float* z, float maximum, int64_t vectors, float* out) {
    Sum sum;
    for (int64_t i = 0; i < vectors; ++i) {
        const vf e = exponential(load(z + i * W) - maximum);
        sum.run += e;
        store(out + i * W, e);
        if (i % FLUSH == FLUSH - 1) flush(sum);
    }
    flush(sum);
    return in_all(sum);
}

// A row opened: where its float32 logits are, what exponentials were taken less, and their sum.
struct Opened {
    float* z;
    float shift;
    double sum;
};

constexpr int64_t AHEAD =
    2048;  // bytes: the processor fetches ahead within a page of 4 KiB and waits at the start of each

// Exponentials less `shift` in one pass over the logits; DIRECT: they are float32, and used where they lie.
template <int TYPE, bool DIRECT>
static double open_sweep(const void* data, float factor, float shift, int64_t whole, float* z_out, float* out,
                         vf& lowest) {
    Sum sum;
    constexpr int64_t SIZE = TYPE == FLOAT32 ? 4 : 2;
    const char* bytes = static_cast<const char*>(data);
    for (int64_t i = 0; i < whole; ++i) {
        __builtin_prefetch(bytes + i * W * SIZE + AHEAD);
        if (W * SIZE > 64) __builtin_prefetch(bytes + i * W * SIZE + AHEAD + 64);
        vf z = TYPE == FLOAT32 ? load(static_cast<const float*>(data) + i * W)
                               : widen(static_cast<const uint16_t*>(data) + i * W, TYPE);
        if (!DIRECT) {
            z = z * factor;
            store(z_out + i * W, z);
        }
        lowest = deeper(z, lowest);
        vf e, em1;
        exponential_of(smaller(full(88.0f * UNIT), larger(full(-87.0f * UNIT), z * UNIT - shift * UNIT)), e, em1);
        sum.run += e;
        store(out + i * W, e);
        if (i % FLUSH == FLUSH - 1) flush(sum);
    }
    flush(sum);
    return in_all(sum);
}

template <int TYPE>
static double open_as(const void* data, bool direct, float factor, float shift, int64_t whole, float* z_out, float* out,
                      vf& lowest) {
    if (direct && TYPE == FLOAT32) return open_sweep<FLOAT32, true>(data, factor, shift, whole, z_out, out, lowest);
    return open_sweep<TYPE, false>(data, factor, shift, whole, z_out, out, lowest);
}

// Exponentials are taken less the largest of the first logits, which saves a pass: any number within 80 of the true
// maximum serves. Where it does not, the row is read again.
static Opened open_row(const AmidkdMatrix& m, int64_t token, float factor, int64_t size, float* z_out, float* out,
                       bool& masked) {
    const int64_t row = m.rows ? m.rows[token] : token, whole = size / W;
    void* data = m.dtype == FLOAT32 ? static_cast<void*>(static_cast<float*>(m.data) + row * m.stride)
                                    : static_cast<void*>(static_cast<uint16_t*>(m.data) + row * m.stride);
    const bool direct = m.dtype == FLOAT32 && factor == 1.0f && size % W == 0;
    bool ignored = false;
    const int64_t first = size < 32 * W ? size : 32 * W;
    float shift = load_row(m, token, factor, first, z_out, ignored);
    for (int attempt = 0; attempt < 2; ++attempt) {
        if (attempt == 1 || !(shift > -INFINITE)) {
            shift = load_row(m, token, factor, size, z_out, masked);
            if (shift == -INFINITE) return {z_out, shift, 0.0};
            return {z_out, shift, exponentials(z_out, shift, (size + W - 1) / W, out)};
        }
        vf lowest{};
        double sum = m.dtype == FLOAT32    ? open_as<FLOAT32>(data, direct, factor, shift, whole, z_out, out, lowest)
                     : m.dtype == BFLOAT16 ? open_as<BFLOAT16>(data, direct, factor, shift, whole, z_out, out, lowest)
                                           : open_as<FLOAT16>(data, direct, factor, shift, whole, z_out, out, lowest);
        masked = masked || any(lowest == -INFINITE);
        if (whole * W < size) {
            AmidkdMatrix end = m;
            end.data = m.dtype == FLOAT32 ? static_cast<void*>(static_cast<float*>(data) + whole * W)
                                          : static_cast<void*>(static_cast<uint16_t*>(data) + whole * W);
            end.rows = nullptr;
            load_row(end, 0, factor, size - whole * W, z_out + whole * W, masked);
            sum += exponentials(z_out + whole * W, shift, 1, out + whole * W);
        }
        if (sum <= 1e34) {
            float* z = direct ? static_cast<float*>(data) : z_out;
            // The exponentials stop at e^-87. Where logits are far lower, masked ones among them, that is no longer
            // small beside their logarithm.
            if (any(lowest - shift < -1e6f))
                for (int64_t i = 0; i < whole; ++i) {
                    const int64_t at = i * W;
                    store(out + at, keep(load(z + at) - shift > -87.0f, load(out + at)));
                }
            return {z, shift, sum};
        }
    }
    return {z_out, shift, 0.0};
}

// Both sources at W tokens. Where one is masked, its logarithm and the difference are 0.
struct Point {
    vf p, q, log_p, log_q, delta;
    vi has_p, has_q, both, by_q;  // by_q: measured from q
};

template <bool MASKED>
AMIDKD_INLINE Point point(const Row& row, const Mix& mix, int64_t at) {
    Point x;
    const vf zt = load(row.zt + at), zs = load(row.zs + at);
    x.p = load(row.p + at) * row.inv_t;
    x.q = load(row.q + at) * row.inv_s;
    x.delta = (zt - zs) - row.apart;
    x.log_p = zt - row.lse_t;
    x.log_q = zs - row.lse_s;
    if (MASKED) {
        x.has_p = zt != -INFINITE;
        x.has_q = zs != -INFINITE;
        x.both = x.has_p & x.has_q;
        x.delta = keep(x.both, x.delta);
        x.log_p = keep(x.has_p, x.log_p);
        x.log_q = keep(x.has_q, x.log_q);
        x.by_q = (x.both & (floats(bits(x.delta) ^ mix.flip) <= mix.threshold)) | (x.has_q & ~x.has_p);
    } else {
        x.by_q = floats(bits(x.delta) ^ mix.flip) <= mix.threshold;
    }
    return x;
}

// Where the assistant lives.
AMIDKD_INLINE vi support(const Point& x, const Mix& mix) { return mix.wide ? x.has_p | x.has_q : x.both; }

// The assistant at W tokens, unnormalised: t = (m / source)^s, log(m / source), the responsibility over 1 - lambda, and
// where it lives.
struct Mixed {
    vf t, core, omega;
    vi live;
};

template <bool GEOMETRIC, bool MASKED>
AMIDKD_INLINE Mixed mixed(const Point& x, const Mix& mix) {
    Mixed out;
    out.t = out.omega = full(1.0f);
    if (GEOMETRIC) {
        out.core = x.delta * mix.level;
    } else {
        vf e, em1;
        exponential_low(magnitude(x.delta) * mix.steepness, e, em1);
        const vf weight = pick(x.by_q, full(mix.lam), full(mix.rest));
        const vf other = pick(x.by_q, full(mix.rest), full(mix.lam));
        out.t = other + weight * e;
        out.core = logarithm(weight * em1, out.t) * mix.inverse;
        out.omega = pick(x.by_q, full(1.0f), e) * reciprocal(out.t);
    }
    if (MASKED) {
        out.live = support(x, mix);
        out.core = pick(x.both, out.core, pick(x.has_q, full(mix.only_q), full(mix.only_p)));
        out.core = keep(out.live, out.core);
        out.omega = keep(out.live & x.has_q, pick(x.both, out.omega, full(1.0f / mix.rest)));
    }
    return out;
}

// log(m/k) for an anchor k.
template <bool BY_STUDENT>
AMIDKD_INLINE vf ratio_to(const Point& x, vf core) {
    return BY_STUDENT ? pick(x.by_q, core, x.delta + core) : pick(x.by_q, core - x.delta, core);
}

// log(m/source) and the responsibility, and what the normaliser is made of. BY_STUDENT: differences are to q, else to
// p.
template <bool GEOMETRIC, bool BY_STUDENT, bool MASKED>
static void mix_sweep(const Row& row, const Mix& mix, int64_t from, int64_t to, Sum& change, Sum& mass) {
    for (int64_t i = from; i < to; ++i) {
        const int64_t at = i * W;
        const Point x = point<MASKED>(row, mix, at);
        const Mixed r = mixed<GEOMETRIC, MASKED>(x, mix);
        const vf source = BY_STUDENT ? x.q : x.p;
        const vf ratio = ratio_to<BY_STUDENT>(x, r.core);
        vi close = magnitude(ratio) < 1.0f;
        if (MASKED) close &= x.both;
        vf e, em1;
        exponential(pick(close, ratio, pick(x.by_q, x.log_q, x.log_p) + r.core), e, em1);
        if (MASKED) e = keep(r.live, e);
        const vf difference = pick(close, source * em1, e - source);
        const vf m = pick(close, source + difference, e);
        change.run += difference;
        mass.run += MASKED ? keep(r.live, m) : m;
        store(row.core + at, r.core);
        store(row.omega + at, r.omega * mix.rest);
        if (i % FLUSH == FLUSH - 1) {
            flush(change);
            flush(mass);
        }
    }
    flush(change);
    flush(mass);
}

// log of the sum of m by its maximum, for a mixture whose mass underflows: sources that hardly meet.
static float far_normaliser(const Row& row, const Mix& mix) {
    vf highest = full(-INFINITE);
    for (int64_t i = 0; i < row.vectors; ++i) {
        const Point x = point<true>(row, mix, i * W);
        const vf log_m = pick(x.by_q, x.log_q, x.log_p) + load(row.core + i * W);
        highest = pick(support(x, mix), larger(log_m, highest), highest);
    }
    const float maximum = largest(highest);
    if (maximum == -INFINITE) return -INFINITE;
    Sum sum;
    for (int64_t i = 0; i < row.vectors; ++i) {
        const Point x = point<true>(row, mix, i * W);
        const vf log_m = pick(x.by_q, x.log_q, x.log_p) + load(row.core + i * W);
        sum.run += keep(support(x, mix), exponential(log_m - maximum));
        if (i % FLUSH == FLUSH - 1) flush(sum);
    }
    flush(sum);
    return maximum + float(std::log(in_all(sum)));
}

template <bool GEOMETRIC, bool BY_STUDENT>
static float mixture_of(const Row& row, const Mix& mix) {
    Sum change, mass;
    if (row.masked)
        mix_sweep<GEOMETRIC, BY_STUDENT, true>(row, mix, 0, row.whole, change, mass);
    else
        mix_sweep<GEOMETRIC, BY_STUDENT, false>(row, mix, 0, row.whole, change, mass);
    mix_sweep<GEOMETRIC, BY_STUDENT, true>(row, mix, row.whole, row.vectors, change, mass);
    const float near = float(std::log1p(in_all(change) > -1 ? in_all(change) : -1));
    if (std::fabs(near) < NEAR_ONE) return near;
    return in_all(mass) < TINY ? far_normaliser(row, mix) : float(std::log(in_all(mass)));
}

// e^to - e^from from an exact w = to - from.
AMIDKD_INLINE vf difference(vf start, vf to, vf w) {
    const vi close = magnitude(w) < 1.0f;
    vf e, em1;
    exponential(pick(close, w, to), e, em1);
    return pick(close, start * em1, e - start);
}

struct Slopes {
    vf value, to_a, to_b;
};

// D's part of W tokens where both live, and its slopes; x = log(b/a), rise = b - a.
template <int FORM>
AMIDKD_INLINE Slopes compare(const Shape& shape, vf a, vf b, vf log_a, vf log_b, vf x, vf rise, vi& overflow) {
    Slopes out;
    if (FORM == KL) {
        const vf line = a * x;
        out.value = pick(magnitude(x) < CLOSE, line * x * curvature(x), larger(rise - line, vf{}));
        out.to_a = -line;
        out.to_b = rise;
    } else if (FORM == JEFFREYS) {
        out.value = larger(rise * x, vf{});
        out.to_a = -(a * x) - rise;
        out.to_b = b * x + rise;
    } else if (FORM == TOTAL_VARIATION) {
        const vf side = pick(x > 0.0f, full(0.5f), keep(x < 0.0f, full(-0.5f)));
        out.value = 0.5f * magnitude(rise);
        out.to_a = -side * a;
        out.to_b = side * b;
    } else if (FORM == JENSEN_SHANNON) {
        vf e, em1;
        exponential(-magnitude(x), e, em1);
        const vf f = logarithm(0.5f * em1, 0.5f + 0.5f * e);
        const vf mu_a = pick(x <= 0.0f, f, x + f), mu_b = pick(x <= 0.0f, f - x, f);
        const vf line_a = a * mu_a, line_b = b * mu_b;
        const vf near = line_a * mu_a * curvature(mu_a) + line_b * mu_b * curvature(mu_b);
        out.value = 0.5f * pick(magnitude(x) < CLOSE, near, larger(-(line_a + line_b), vf{}));
        out.to_a = -0.5f * line_a;
        out.to_b = -0.5f * line_b;
    } else {
        if (shape.a_zero) {
            out.value = 0.5f * x * x;
            out.to_a = -x;
            out.to_b = x;
            return out;
        }
        vf power = a, rise_c = rise;
        if (!shape.c_one) {
            power = exponential(shape.c * log_a);
            rise_c = difference(power, shape.c * log_b, shape.c * x);
        }
        const vf crossed = shape.a * log_a + shape.b * log_b;
        const vf rise_b = difference(power, crossed, shape.b * x);
        const vf grown_c = shape.c_zero ? power * x : rise_c * shape.inv_c;
        const vf grown_b = shape.b_zero ? power * x : rise_b * shape.inv_b;
        const vf far = larger((grown_c - grown_b) * shape.inv_a, vf{});
        const vi close = magnitude(x) <= shape.radius;
        const vf small = keep(close, x);
        vf g = full(shape.series[8]);
        for (int n = 7; n >= 0; --n) g = g * small + shape.series[n];
        out.value = pick(close, power * (small * small * g), far);
        out.to_a = -grown_b;
        out.to_b = (rise_c - rise_b) * shape.inv_a;
        overflow =
            (shape.c * log_a > LARGEST_EXPONENT) | (shape.c * log_b > LARGEST_EXPONENT) | (crossed > LARGEST_EXPONENT);
    }
    return out;
}

// A mass that meets none: its part, and the slope to it. False: infinite.
template <int FORM>
AMIDKD_INLINE void alone(const Shape& shape, bool of_a, vf mass, vf log_mass, vf& value, vf& slope, bool& finite) {
    if (FORM == TOTAL_VARIATION || FORM == JENSEN_SHANNON) {
        value = slope = mass * (FORM == TOTAL_VARIATION ? 0.5f : 0.34657359f);
        finite = true;
    } else if (FORM == JEFFREYS) {
        value = slope = vf{};
        finite = false;
    } else {
        const vf power = FORM == KL || shape.c_one ? mass : exponential(shape.c * log_mass);
        value = power * (of_a ? shape.alone_a : shape.alone_b) * shape.inv_c;
        slope = power * (of_a ? shape.alone_a : shape.alone_b);
        finite = of_a ? shape.a_alone : shape.b_alone;
    }
}

// D(a||b) with the anchor k (q: BY_STUDENT, else p) and the assistant r. PURE: r is the other source.
// Leaves G + omega H in `core` and omega r in `omega`.
template <int FORM, bool BY_STUDENT, bool K_FIRST, bool PURE, bool MASKED>
static void compare_sweep(const Row& row, const Mix& mix, const Shape& shape, float log_z, float learns, int64_t from,
                          int64_t to, Sums& sums) {
    for (int64_t i = from; i < to; ++i) {
        const int64_t at = i * W;
        const Point s = point<MASKED>(row, mix, at);
        const vf k = BY_STUDENT ? s.q : s.p, log_k = BY_STUDENT ? s.log_q : s.log_p;
        vf omega, y, log_r;
        if (PURE) {
            omega = full(BY_STUDENT ? 0.0f : learns);
            y = BY_STUDENT ? s.delta : -s.delta;
            log_r = BY_STUDENT ? s.log_p : s.log_q;
        } else {
            const vf core = load(row.core + at);
            omega = load(row.omega + at) * learns;
            y = ratio_to<BY_STUDENT>(s, core) - log_z;
            log_r = (pick(s.by_q, s.log_q, s.log_p) + core) - log_z;
        }
        vi has_k, has_r, both;
        if (MASKED) {
            has_k = BY_STUDENT ? s.has_q : s.has_p;
            has_r = PURE ? (BY_STUDENT ? s.has_p : s.has_q) : support(s, mix);
            both = has_k & has_r;
            y = keep(both, y);
            log_r = keep(has_r, log_r);
        }
        vi close = magnitude(y) < 1.0f;
        if (MASKED) close &= both;
        vf e, em1;
        exponential(pick(close, y, log_r), e, em1);
        if (MASKED) e = keep(has_r, e);
        const vf d = pick(close, k * em1, e - k);
        const vf r = pick(close, k + d, e);
        vi overflow{};
        Slopes part = K_FIRST ? compare<FORM>(shape, k, r, log_k, log_r, y, d, overflow)
                              : compare<FORM>(shape, r, k, log_r, log_k, -y, -d, overflow);
        if (MASKED) {
            const vi only_k = has_k & ~has_r, only_r = has_r & ~has_k;
            vf value_k, slope_k, value_r, slope_r;
            bool finite_k, finite_r;
            alone<FORM>(shape, K_FIRST, k, log_k, value_k, slope_k, finite_k);
            alone<FORM>(shape, !K_FIRST, r, log_r, value_r, slope_r, finite_r);
            part.value = pick(both, part.value, pick(only_k, value_k, keep(only_r, value_r)));
            const vf to_k = pick(both, K_FIRST ? part.to_a : part.to_b, keep(only_k, slope_k));
            const vf to_r = pick(both, K_FIRST ? part.to_b : part.to_a, keep(only_r, slope_r));
            part.to_a = K_FIRST ? to_k : to_r;
            part.to_b = K_FIRST ? to_r : to_k;
            sums.infinite |= both & overflow;
            if (!finite_k) sums.infinite |= only_k;
            if (!finite_r) sums.infinite |= only_r;
            sums.any_k |= has_k;
            sums.any_r |= has_r;
        } else {
            sums.infinite |= overflow;
            sums.any_k = sums.any_r = full(-1);
        }
        const vf to_k = K_FIRST ? part.to_a : part.to_b, to_r = K_FIRST ? part.to_b : part.to_a;
        const vf first = BY_STUDENT ? to_k + omega * to_r : omega * to_r;
        sums.value.run += part.value;
        sums.first.run += first;
        store(row.core + at, first);
        if (!(FORM == KL && K_FIRST)) {  // there the sum of the slopes to r is sum(r - k) = 0
            const vf second = omega * r;
            sums.to_r.run += to_r;
            sums.second.run += second;
            store(row.omega + at, second);
        }
        if (i % FLUSH == FLUSH - 1) {
            flush(sums.value);
            flush(sums.first);
            flush(sums.to_r);
            flush(sums.second);
        }
    }
    flush(sums.value);
    flush(sums.first);
    flush(sums.to_r);
    flush(sums.second);
}

template <int FORM, bool BY_STUDENT, bool K_FIRST, bool PURE>
static void compare_row(const Row& row, const Mix& mix, const Shape& shape, float log_z, float learns, Sums& sums) {
    if (row.masked)
        compare_sweep<FORM, BY_STUDENT, K_FIRST, PURE, true>(row, mix, shape, log_z, learns, 0, row.whole, sums);
    else
        compare_sweep<FORM, BY_STUDENT, K_FIRST, PURE, false>(row, mix, shape, log_z, learns, 0, row.whole, sums);
    compare_sweep<FORM, BY_STUDENT, K_FIRST, PURE, true>(row, mix, shape, log_z, learns, row.whole, row.vectors, sums);
}

using Compare = void (*)(const Row&, const Mix&, const Shape&, float, float, Sums&);

template <int FORM>
static Compare comparison(bool by_student, bool k_first, bool pure) {
    if (by_student) {
        if (k_first) return pure ? compare_row<FORM, true, true, true> : compare_row<FORM, true, true, false>;
        return pure ? compare_row<FORM, true, false, true> : compare_row<FORM, true, false, false>;
    }
    if (k_first) return pure ? compare_row<FORM, false, true, true> : compare_row<FORM, false, true, false>;
    return pure ? compare_row<FORM, false, false, true> : compare_row<FORM, false, false, false>;
}

static Compare comparison(int form, bool by_student, bool k_first, bool pure) {
    switch (form) {
        case KL:
            return comparison<KL>(by_student, k_first, pure);
        case JEFFREYS:
            return comparison<JEFFREYS>(by_student, k_first, pure);
        case TOTAL_VARIATION:
            return comparison<TOTAL_VARIATION>(by_student, k_first, pure);
        case JENSEN_SHANNON:
            return comparison<JENSEN_SHANNON>(by_student, k_first, pure);
        default:
            return comparison<POWER>(by_student, k_first, pure);
    }
}

// How m / source is had from t = (m / source)^s, the source being the larger one: by a power where 1/s is one, else by
// an exponential; BY_LOGS where the source may underflow and m does not (s <= 0).
enum Root { BY_LOGS, BY_EXPONENTIAL, SQUARE_ROOT, PLAIN, SQUARE, FOURTH };

struct KLSums {
    Sum change, of_p, of_q, first, second, third;
    vi infinite{};
};

// What an anchor k adds to KL(k||r): with M = log(m/k) the difference m - k and k phi(M), phi(x) = e^x - 1 - x.
struct Bend {
    vf line, difference, value;
};

AMIDKD_INLINE Bend bend(vf k, vf m, vf ratio, vi close) {
    Bend out;
    out.line = k * ratio;
    const vf curved = out.line * (ratio * curvature(ratio));
    out.difference = pick(close, out.line + curved, m - k);
    out.value = pick(close, curved, larger(out.difference - out.line, vf{}));
    return out;
}

// KL(p||r), KL(q||r) or both, weighted, in one sweep, before log Z = l is known:
//   D = sum k phi(M) - phi(l)
//   A = omega (r - k) [- k (M - l) where k = q],  r - k = e^-l (m - k) + (e^-l - 1) k
// `core` gets omega (m - k), `omega` omega k, over 1 - lambda, weighted and summed where there are both; `third` gets
// q log(m/q).
template <int ROOT, bool GEOMETRIC, bool OF_P, bool OF_Q, bool MASKED>
static __attribute__((noinline)) void kl_sweep(const Row& shared, const Mix& settings, float weight_p, float weight_q,
                                               int64_t from, int64_t to, KLSums& all) {
    const Row row = shared;
    const Mix mix = settings;
    KLSums sums = all;
    for (int64_t i = from; i < to; ++i) {
        const int64_t at = i * W;
        const Point x = point<MASKED>(row, mix, at);
        const Mixed r = mixed<GEOMETRIC, MASKED>(x, mix);
        if (MASKED && OF_P) sums.infinite |= x.has_p & ~r.live;
        if (MASKED && OF_Q) sums.infinite |= x.has_q & ~r.live;
        vf m;
        if (MASKED || ROOT == BY_LOGS) {
            m = exponential(pick(x.by_q, x.log_q, x.log_p) + r.core);
            if (MASKED) m = keep(r.live, m);
        } else {
            vf power = r.t;
            if (ROOT == BY_EXPONENTIAL) {
                vf em1;
                exponential_low(r.core * UNIT, power, em1);
            } else if (ROOT == SQUARE_ROOT) {
                power = square_root(r.t);
            } else if (ROOT == SQUARE) {
                power = r.t * r.t;
            } else if (ROOT == FOURTH) {
                power = (r.t * r.t) * (r.t * r.t);
            }
            m = pick(x.by_q, x.q, x.p) * power;
        }
        vf first, second;
        if (OF_P) {
            const vf ratio = ratio_to<false>(x, r.core);
            vi close = magnitude(ratio) < CLOSE;
            if (MASKED) close &= x.has_p & r.live;
            const Bend k = bend(x.p, m, ratio, close);
            sums.change.run += k.difference;
            sums.of_p.run += MASKED ? keep(r.live, k.value) : k.value;
            first = OF_Q ? k.difference * weight_p : k.difference;
            second = OF_Q ? x.p * weight_p : x.p;
        }
        if (OF_Q) {
            const vf ratio = ratio_to<true>(x, r.core);
            vi close = magnitude(ratio) < CLOSE;
            if (MASKED) close &= x.has_q & r.live;
            const Bend k = bend(x.q, m, ratio, close);
            if (!OF_P) sums.change.run += k.difference;
            sums.of_q.run += MASKED ? keep(r.live, k.value) : k.value;
            const vf line = MASKED ? keep(x.has_q, k.line) : k.line;
            sums.third.run += line;
            store(row.third + at, line);
            first = OF_P ? first + k.difference * weight_q : k.difference * weight_q;
            second = OF_P ? second + x.q * weight_q : x.q * weight_q;
        }
        first = r.omega * first;
        second = r.omega * second;
        sums.first.run += first;
        sums.second.run += second;
        store(row.core + at, first);
        store(row.omega + at, second);
        if (i % FLUSH == FLUSH - 1) {
            flush(sums.change);
            if (OF_P) flush(sums.of_p);
            if (OF_Q) flush(sums.of_q);
            flush(sums.first);
            flush(sums.second);
            if (OF_Q) flush(sums.third);
        }
    }
    flush(sums.change);
    flush(sums.of_p);
    flush(sums.of_q);
    flush(sums.first);
    flush(sums.second);
    flush(sums.third);
    all = sums;
}

template <int ROOT, bool GEOMETRIC, bool OF_P, bool OF_Q>
static void kl_row(const Row& row, const Mix& mix, float weight_p, float weight_q, KLSums& sums) {
    if (row.masked)
        kl_sweep<BY_LOGS, GEOMETRIC, OF_P, OF_Q, true>(row, mix, weight_p, weight_q, 0, row.whole, sums);
    else
        kl_sweep<ROOT, GEOMETRIC, OF_P, OF_Q, false>(row, mix, weight_p, weight_q, 0, row.whole, sums);
    kl_sweep<BY_LOGS, GEOMETRIC, OF_P, OF_Q, true>(row, mix, weight_p, weight_q, row.whole, row.vectors, sums);
}

template <bool OF_P, bool OF_Q>
static void kl_row(const Row& row, const Mix& mix, float weight_p, float weight_q, KLSums& sums) {
    const float inverse = mix.s > 0 ? mix.inverse : 0.0f;
    const auto run = mix.geometric     ? kl_row<BY_LOGS, true, OF_P, OF_Q>
                     : inverse == 0.5f ? kl_row<SQUARE_ROOT, false, OF_P, OF_Q>
                     : inverse == 1.0f ? kl_row<PLAIN, false, OF_P, OF_Q>
                     : inverse == 2.0f ? kl_row<SQUARE, false, OF_P, OF_Q>
                     : inverse == 4.0f ? kl_row<FOURTH, false, OF_P, OF_Q>
                     : inverse > 0.0f  ? kl_row<BY_EXPONENTIAL, false, OF_P, OF_Q>
                                       : kl_row<BY_LOGS, false, OF_P, OF_Q>;
    run(row, mix, weight_p, weight_q, sums);
}

static Mix mix_of(const AmidkdTerm& term, int64_t token) {
    const double s = term.s[token * term.s_step], lam = term.lam[token * term.lam_step];
    Mix mix{};
    mix.s = float(s);
    mix.steepness = -std::fabs(float(s)) * UNIT;
    mix.flip = s < 0 ? INT32_MIN : 0;
    mix.geometric = s == 0;
    mix.inverse = mix.geometric ? 0.0f : float(1 / s);
    mix.lam = float(lam);
    mix.rest = float(1 - lam);
    mix.pure = lam == 0 || lam == 1;
    mix.wide = s > 0;
    mix.only_q = mix.wide ? float(std::log1p(-lam) / s) : 0.0f;
    mix.only_p = mix.wide ? float(std::log(lam) / s) : 0.0f;
    // The geometric mean is measured from the source of the larger weight, wherever the two are.
    const bool from_q = lam <= 0.5;
    mix.threshold = mix.geometric ? (from_q ? INFINITE : -INFINITE) : 0.0f;
    mix.level = from_q ? float(lam) : float(lam - 1);
    return mix;
}

static Shape shape_of(const AmidkdTerm& term) {
    Shape shape{};
    const double a = term.a, b = term.b, c = a + b;
    const bool c_zero = std::fabs(c) < 1e-30;
    shape.a = float(a);
    shape.b = float(b);
    shape.c = c_zero ? 0.0f : float(c);
    shape.a_zero = a == 0;
    shape.b_zero = b == 0;
    shape.c_zero = c_zero;
    shape.c_one = c == 1;
    shape.inv_a = shape.a_zero ? 0.0f : float(1 / a);
    shape.inv_b = shape.b_zero ? 0.0f : float(1 / b);
    shape.inv_c = c_zero ? 0.0f : float(1 / c);
    shape.a_alone = b > 0 && c > 0;
    shape.b_alone = a > 0 && c > 0;
    shape.alone_a = shape.a_alone ? shape.inv_b : 0.0f;
    shape.alone_b = shape.b_alone ? shape.inv_a : 0.0f;
    shape.series = term.series;
    const double widest = std::fabs(c) > std::fabs(b) ? std::fabs(c) : std::fabs(b);
    shape.radius = widest > 0 ? float(0.5 / widest) : INFINITE;
    return shape;
}

// What A is made of: c1 core + c2 omega + c3 third + c4 q.
struct Parts {
    float first, second, third, of_q;
};

// out = base scale + A, over the vocabulary; base may be absent, and so may the second and third parts. FRESH: nobody
// reads the memory soon, so it is written past the caches.
template <bool BASE, bool SECOND, bool THIRD, bool FRESH>
static void finish(const Row& row, const float* base, const Parts& c, float scale, float* wide, uint16_t* half,
                   int dtype) {
    for (int64_t i = 0; i < row.vectors; ++i) {
        const int64_t at = i * W;
        vf g = load(row.core + at) * c.first + load(row.q + at) * c.of_q;
        if (SECOND) g = g + load(row.omega + at) * c.second;
        if (THIRD) g = g + load(row.third + at) * c.third;
        if (BASE) g = g + load(base + at) * scale;
        if (FRESH) {
            stream(wide + at, g);
        } else if (i < row.whole) {
            if (wide)
                store(wide + at, g);
            else
                narrow(half + at, g, dtype);
        } else if (wide) {
            std::memcpy(wide + at, &g, (row.size - at) * sizeof(float));
        } else {
            uint16_t last[W];
            narrow(last, g, dtype);
            std::memcpy(half + at, last, (row.size - at) * sizeof(uint16_t));
        }
    }
    if (FRESH) streamed();
}

// Where a row of the gradient goes.
struct Out {
    float* wide;
    uint16_t* half;
    int dtype;
    bool fresh;  // whole vectors at aligned addresses, that are not the logits themselves
};

static Out out_of(const AmidkdCall& call, int64_t token) {
    const AmidkdMatrix& m = call.gradient;
    const int64_t row = m.rows ? m.rows[token] : token;
    if (m.dtype != FLOAT32) return {nullptr, static_cast<uint16_t*>(m.data) + row * m.stride, m.dtype, false};
    float* wide = static_cast<float*>(m.data) + row * m.stride;
    const bool fresh = STREAMS && m.data != call.student.data && call.vocabulary % W == 0 &&
                       reinterpret_cast<uintptr_t>(wide) % 64 == 0;
    return {wide, nullptr, FLOAT32, fresh};
}

// What is already there, times the scale; zeros without a base.
static void copy_out(const Row& row, const float* base, float scale, const Out& out) {
    for (int64_t i = 0; i < row.size; ++i) {
        const float g = base ? base[i] * scale : 0.0f;
        if (out.wide) {
            out.wide[i] = g;
        } else {
            uint16_t lanes[W];
            narrow(lanes, full(g), out.dtype);
            out.half[i] = lanes[0];
        }
    }
}

template <bool FRESH>
static void finish_row(const Row& row, const float* base, const Parts& c, float scale, const Out& out) {
    const auto run = c.third != 0    ? (base ? finish<true, true, true, FRESH> : finish<false, true, true, FRESH>)
                     : c.second != 0 ? (base ? finish<true, true, false, FRESH> : finish<false, true, false, FRESH>)
                                     : (base ? finish<true, false, false, FRESH> : finish<false, false, false, FRESH>);
    const Parts scaled = {c.first * scale, c.second * scale, c.third * scale, c.of_q * scale};
    run(row, base, scaled, scale, out.wide, out.half, out.dtype);
}

static void finish_row(const Row& row, const float* base, const Parts& c, float scale, const Out& out) {
    if (out.fresh)
        finish_row<true>(row, base, c, scale, out);
    else
        finish_row<false>(row, base, c, scale, out);
}

// -log q(label) at temperature 1, and weight (softmax - onehot) in `extra` where a gradient is wanted.
static float cross_entropy(const AmidkdCall& call, const Row& row, int64_t token, bool gradient) {
    const int64_t label = call.labels[token];
    const float weight = float(call.cross_entropy_weight);
    const float* plain = row.zs;
    const float* e = row.q;
    float lse = row.lse_s, inverse = row.inv_s;
    if (call.temperature != 1) {
        bool masked = false;
        const float maximum = load_row(call.student, token, 1.0f, row.size, row.core, masked);
        const double sum = exponentials(row.core, maximum, row.vectors, row.omega);
        plain = row.core;
        e = row.omega;
        lse = maximum + float(std::log(sum));
        inverse = float(1 / sum);
    }
    if (gradient) {
        for (int64_t i = 0; i < row.vectors; ++i) store(row.extra + i * W, load(e + i * W) * (inverse * weight));
        row.extra[label] -= weight;
    }
    return lse - plain[label];
}

static int64_t highest(const float* z, int64_t size) {
    int64_t found = 0;
    for (int64_t i = 1; i < size; ++i)
        if (z[i] > z[found]) found = i;
    return found;
}

// The rows of MEASURED that need no assistant.
static void measure(const AmidkdCall& call, const Row& row, int64_t token) {
    const Mix none{};
    Sum forward, reverse, of_p, of_q;
    vi only_p{}, only_q{};
    for (int64_t i = 0; i < row.vectors; ++i) {
        const Point x = point<true>(row, none, i * W);
        const vf rise = difference(x.p, x.log_q, keep(x.both, -x.delta));
        const vi close = magnitude(x.delta) < CLOSE;
        const vf bend = x.delta * x.delta;
        forward.run += keep(x.both, pick(close, x.p * bend * curvature(-x.delta), larger(rise + x.p * x.delta, vf{})));
        reverse.run += keep(x.both, pick(close, x.q * bend * curvature(x.delta), larger(-rise - x.q * x.delta, vf{})));
        forward.run += keep(x.has_q & ~x.has_p, x.q);
        reverse.run += keep(x.has_p & ~x.has_q, x.p);
        only_p |= x.has_p & ~x.has_q;
        only_q |= x.has_q & ~x.has_p;
        of_p.run -= x.p * x.log_p;
        of_q.run -= x.q * x.log_q;
        if (i % FLUSH == FLUSH - 1) {
            flush(forward);
            flush(reverse);
            flush(of_p);
            flush(of_q);
        }
    }
    flush(forward);
    flush(reverse);
    flush(of_p);
    flush(of_q);
    float* out = call.metrics + token;
    out[0 * call.count] = any(only_p) ? INFINITE : float(in_all(forward));
    out[1 * call.count] = any(only_q) ? INFINITE : float(in_all(reverse));
    out[2 * call.count] = float(in_all(of_p));
    out[3 * call.count] = float(in_all(of_q));
    out[4 * call.count] = highest(row.zt, row.size) == highest(row.zs, row.size) ? 1.0f : 0.0f;
}

// Entropy of the assistant, and the share of the teacher's mass that can move the student.
static void measure_assistant(const AmidkdCall& call, const Row& row, const Mix& mix, float log_z, int64_t token) {
    Sum entropy, share;
    for (int64_t i = 0; i < row.vectors; ++i) {
        const Point x = point<true>(row, mix, i * W);
        vf log_r, omega;
        vi live;
        if (mix.pure) {
            live = mix.lam == 0 ? x.has_q : x.has_p;
            log_r = mix.lam == 0 ? x.log_q : x.log_p;
            omega = keep(x.has_q, full(mix.lam == 0 ? 1.0f : 0.0f));
        } else {
            live = support(x, mix);
            log_r = pick(x.by_q, x.log_q, x.log_p) + load(row.core + i * W) - log_z;
            omega = load(row.omega + i * W);
        }
        log_r = keep(live, log_r);
        entropy.run -= keep(live, exponential(log_r)) * log_r;
        share.run += x.p * omega;
        if (i % FLUSH == FLUSH - 1) {
            flush(entropy);
            flush(share);
        }
    }
    flush(entropy);
    flush(share);
    call.metrics[5 * call.count + token] = float(in_all(entropy));
    call.metrics[6 * call.count + token] = float(in_all(share));
}

static float log_of(double sum) { return float(std::log(sum)); }

// Sources that share no token: every log m is then log w / s plus a logarithm of theirs, so large for a small s that no
// digit is left of the rest. Only the difference of the two matters; the normaliser takes the larger away.
static void centre_apart(const Row& row, Mix& mix, const AmidkdTerm& term, int64_t token) {
    const vf masked = full(-INFINITE);
    for (int64_t i = 0; i < row.vectors; ++i)
        if (any((load(row.zt + i * W) != masked) & (load(row.zs + i * W) != masked))) return;
    const double s = term.s[token * term.s_step], lam = term.lam[token * term.lam_step];
    const double of_p = std::log(lam) / s, of_q = std::log1p(-lam) / s, larger = of_p > of_q ? of_p : of_q;
    mix.only_p = float(of_p - larger);
    mix.only_q = float(of_q - larger);
}

// KL(p||r), KL(q||r) or both of one assistant, with the gradient on top of `base`; a term that is absent is null.
// False: log Z is far from 0, where the sums of one sweep lose digits.
static bool kl_terms(const AmidkdCall& call, const Row& row, const AmidkdTerm* of_p, const AmidkdTerm* of_q,
                     const Mix& mix, const float* base, float scale, const Out* out, float& value, bool& wrote) {
    const double weight_p = of_p ? of_p->weight * of_p->factor : 0, weight_q = of_q ? of_q->weight * of_q->factor : 0;
    KLSums sums;
    if (of_p && of_q)
        kl_row<true, true>(row, mix, float(weight_p), float(weight_q), sums);
    else if (of_p)
        kl_row<true, false>(row, mix, 1.0f, 0.0f, sums);
    else
        kl_row<false, true>(row, mix, 0.0f, of_q->detached ? 0.0f : 1.0f, sums);
    wrote = false;
    if (any(sums.infinite)) {
        value = INFINITE;
        return true;
    }
    const double change = in_all(sums.change);
    if (!(1 + change > 0.1 && 1 + change < 10)) return false;
    const double l = std::log1p(change), down = std::exp(-l), less = std::expm1(-l), phi = change - l;
    const double in_p = in_all(sums.of_p) - phi, in_q = in_all(sums.of_q) - phi;
    value = float(weight_p * (in_p > 0 ? in_p : 0) + weight_q * (in_q > 0 ? in_q : 0));
    if (!out) return true;
    // Where there are both, the sweep has weighted the first two parts.
    const double temper = 1 / call.temperature;
    const double weight = (of_p && of_q ? 1 : weight_p + weight_q) * temper * mix.rest;
    const double third = weight_q * temper;
    const double all =
        weight * (down * in_all(sums.first) + less * in_all(sums.second)) - third * (in_all(sums.third) - l);
    finish_row(row, base,
               {float(weight * down), float(weight * less), float(-third), float(third * l - all) * row.inv_s}, scale,
               *out);
    wrote = true;
    return true;
}

// One term: weight D; its gradient goes to `out` on top of `base`, where `wrote` says so.
static float term_row(const AmidkdCall& call, const Row& row, const AmidkdTerm& term, int64_t number, int64_t token,
                      const float* base, float scale, const Out* out, bool& wrote) {
    Mix mix = mix_of(term, token);
    if (row.masked && mix.wide && !mix.pure) centre_apart(row, mix, term, token);
    const bool by_student = term.anchor == 1, measured = call.metrics && call.assistant == number;
    wrote = false;
    if (term.form == KL && term.anchor_first && !mix.pure && !measured) {
        float value = 0;
        if (kl_terms(call, row, by_student ? nullptr : &term, by_student ? &term : nullptr, mix, base, scale, out,
                     value, wrote))
            return value;
    }
    float log_z = 0;
    if (!mix.pure) {
        if (mix.geometric)
            log_z = by_student ? mixture_of<true, true>(row, mix) : mixture_of<true, false>(row, mix);
        else
            log_z = by_student ? mixture_of<false, true>(row, mix) : mixture_of<false, false>(row, mix);
    }
    if (measured) measure_assistant(call, row, mix, log_z, token);
    if (log_z == -INFINITE) return INFINITE;
    const Shape shape = shape_of(term);
    const float learns = term.detached ? 0.0f : 1.0f;
    const bool same = mix.pure && (mix.lam == 0) == by_student;  // r is the anchor itself
    if (same) return 0.0f;
    Sums sums;
    comparison(term.form, by_student, term.anchor_first != 0, mix.pure)(row, mix, shape, log_z, learns, sums);
    if (any(sums.infinite) || !any(sums.any_k) || !any(sums.any_r)) return INFINITE;
    if (out) {
        const double weight = term.weight * term.factor / call.temperature;
        const double all = in_all(sums.first) - in_all(sums.to_r) * in_all(sums.second);
        finish_row(row, base,
                   {float(weight), float(-weight * in_all(sums.to_r)), 0.0f, float(-weight * all) * row.inv_s}, scale,
                   *out);
        wrote = true;
    }
    return float(term.weight * term.factor * in_all(sums.value));
}

// Whether a term and the next are KL(p||r) and KL(q||r) of one assistant (GKD, Jensen-Shannon), which one sweep
// computes.
static bool together(const AmidkdCall& call, int64_t number, int64_t token) {
    const AmidkdTerm &a = call.terms[number], &b = call.terms[number + 1];
    const auto usual = [&](const AmidkdTerm& x) { return x.form == KL && x.anchor_first && !x.detached; };
    const double lam = a.lam[token * a.lam_step];
    return usual(a) && usual(b) && a.anchor != b.anchor && !call.metrics && lam > 0 && lam < 1 &&
           lam == b.lam[token * b.lam_step] && a.s[token * a.s_step] == b.s[token * b.s_step];
}

// A token with NaN or +inf among its logits: NaN wherever it is looked at, since a comparison would hide it.
static void spoil(const AmidkdCall& call, const Row& row, int64_t token) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    call.values[token] = nan;
    if (call.divergences) call.divergences[token] = nan;
    if (call.cross_entropies) call.cross_entropies[token] = nan;
    if (call.metrics)
        for (int j = 0; j < 7; ++j) call.metrics[j * call.count + token] = nan;
    if (!call.gradient.data) return;
    for (int64_t i = 0; i < row.vectors; ++i) store(row.extra + i * W, full(nan));
    copy_out(row, row.extra, 1.0f, out_of(call, token));
}

static void token_row(const AmidkdCall& call, Row& row, int64_t token) {
    const bool gradient = call.gradient.data != nullptr;
    const float factor = float(1 / call.temperature), scale = call.scale ? call.scale[token] : 1.0f;
    row.masked = false;
    const Opened student = open_row(call.student, token, factor, row.size, row.buffer_s, row.q, row.masked);
    row.zs = student.z;
    row.lse_s = student.shift + log_of(student.sum);
    row.inv_s = float(1 / student.sum);
    const bool speechless = student.shift == -INFINITE;  // the student has no token
    bool empty = speechless, broken = std::isnan(student.sum);
    if (call.term_count) {
        const Opened teacher = open_row(call.teacher, token, factor, row.size, row.buffer_t, row.p, row.masked);
        row.zt = teacher.z;
        row.lse_t = teacher.shift + log_of(teacher.sum);
        row.inv_t = float(1 / teacher.sum);
        row.apart =
            float((double(teacher.shift) - double(student.shift)) + (std::log(teacher.sum) - std::log(student.sum)));
        empty = empty || teacher.shift == -INFINITE;
        broken = broken || std::isnan(teacher.sum);
    }
    if (broken) return spoil(call, row, token);
    if (call.term_count && call.metrics) {
        if (empty)
            for (int j = 0; j < 7; ++j) call.metrics[j * call.count + token] = INFINITE;
        else
            measure(call, row, token);
    }
    const float* base = nullptr;
    float nll = 0;
    if (call.labels && call.labels[token] >= 0) {
        nll = speechless ? INFINITE : cross_entropy(call, row, token, gradient);
        if (gradient && !speechless) base = row.extra;
    }
    float value = 0;
    empty = empty && call.term_count > 0;
    const Out final_out = gradient ? out_of(call, token) : Out{};
    const Out partial{row.extra, nullptr, FLOAT32, false};
    bool written = false;
    for (int64_t j = 0; j < call.term_count && !empty; ++j) {
        float found = 0;
        bool wrote = false, done = false;
        if (j + 1 < call.term_count && together(call, j, token)) {
            const bool last = j + 2 == call.term_count;
            const AmidkdTerm *first = &call.terms[j], *second = first + 1;
            Mix mix = mix_of(*first, token);
            if (row.masked && mix.wide) centre_apart(row, mix, *first, token);
            if (first->anchor == 1) std::swap(first, second);
            done = kl_terms(call, row, first, second, mix, base, last ? scale : 1.0f,
                            gradient ? (last ? &final_out : &partial) : nullptr, found, wrote);
            if (done) ++j;
        }
        const bool last = j + 1 == call.term_count;
        if (!done)
            found = term_row(call, row, call.terms[j], j, token, base, last ? scale : 1.0f,
                             gradient ? (last ? &final_out : &partial) : nullptr, wrote);
        value += found;
        if (wrote && !last) base = row.extra;
        written = wrote && last;
    }
    if (empty) value = INFINITE;
    if (gradient && !written) copy_out(row, base, scale, final_out);
    if (call.divergences) call.divergences[token] = value;
    if (call.cross_entropies) call.cross_entropies[token] = nll;
    call.values[token] = value + float(call.cross_entropy_weight) * nll;
}

static void work(Job& job) {
    static thread_local Scratch scratch;
    const AmidkdCall& call = *job.call;
    const int64_t padded = (call.vocabulary + LANES - 1) / LANES * LANES;
    float* data = scratch.need(size_t(8 * padded));
    if (!data) {
        job.failed = 1;
        return;
    }
    Row row{};
    row.size = call.vocabulary;
    row.whole = call.vocabulary / W;
    row.vectors = (call.vocabulary + W - 1) / W;
    float** parts[] = {&row.buffer_t, &row.buffer_s, &row.p, &row.q, &row.core, &row.omega, &row.third, &row.extra};
    for (auto part : parts) {
        *part = data;
        data += padded;
    }
    for (;;) {
        const int64_t start = job.next.fetch_add(job.batch);
        if (start >= call.count) return;
        const int64_t stop = start + job.batch < call.count ? start + job.batch : call.count;
        for (int64_t token = start; token < stop; ++token) token_row(call, row, token);
    }
}

}  // namespace AMIDKD_NAME
}  // namespace amidkd

#endif
