// The message step of PaiNN and its first and second derivatives, one pass over the edges each; painn_message.py has the
// formulas and calls it.
//
// The feature axis is cut into blocks of a few vector registers; a block walks over all edges with the radial filter of its
// features in the cache, so nothing of size [edges, features] is ever written.  Blocks write to features of their own: they can
// run on several threads, and sums are in the order of the edges whatever the number of threads.

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

extern "C" struct Arguments {
    int64_t edges, atoms, width, radial, parts, threads;
    const int64_t *source, *target;                 // [E]
    const void *features, *vectors, *basis, *unit;  // [N, P, F]; [N, 3, F] or null (P = 2); [E, R]; [E, 3]
    const void *filter;                             // [P F, R]
    const void *grad_scalar, *grad_vector;          // [N, F], [N, 3, F]: of the sums
    const void *dot_features, *dot_vectors, *dot_basis, *dot_unit;  // directions, shaped as what they are directions of
    void *scalar_sum, *vector_sum;                                  // [N, F], [N, 3, F]: results, begin as zero
    void *out_features, *out_vectors, *out_basis, *out_unit, *out_filter;  // gradients, begin as zero; null: not wanted
};

namespace {

enum Kind { FORWARD, BACKWARD, DOUBLE_BACKWARD };

template <typename T>
struct Lane {
    typedef T Vec __attribute__((vector_size(64)));
    static constexpr int64_t count = 64 / sizeof(T);
};

// Halves onto halves: a loop over the lanes would wait for one addition after the other.
template <typename T>
T sum(const typename Lane<T>::Vec &v) {
    typedef T Half __attribute__((vector_size(32)));
    typedef T Quarter __attribute__((vector_size(16)));
    Half half[2];
    std::memcpy(half, &v, sizeof(v));
    half[0] += half[1];
    Quarter quarter[2];
    std::memcpy(quarter, half, sizeof(Half));
    quarter[0] += quarter[1];
    if constexpr (sizeof(T) == 8) return quarter[0][0] + quarter[0][1];
    else return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// One block of one step: features [first, first + K lanes), or the last `rest` of them (TAIL, K = 1).
template <typename T, int K, int P, bool TAIL>
struct Block {
    using Vec = typename Lane<T>::Vec;
    static constexpr int64_t L = Lane<T>::count;

    const Arguments &a;
    const int64_t first, rest;
    const T *weights;          // [R, P, K L] of this block
    T *out_weights;            // the same shape; null: not wanted
    T *out_basis, *out_unit;   // [E, R], [E, 3]: of this block alone, or shared by blocks that run one after the other

    Vec load(const void *base, int64_t row, int k) const {
        return load(static_cast<const T *>(base) + row * a.width + first + k * L);
    }
    Vec load(const T *from) const {
        Vec v{};
#ifdef __AVX512F__
        if constexpr (TAIL && sizeof(T) == 4) return (Vec)_mm512_maskz_loadu_ps((1u << rest) - 1, from);
        if constexpr (TAIL && sizeof(T) == 8) return (Vec)_mm512_maskz_loadu_pd((1u << rest) - 1, from);
#endif
        std::memcpy(&v, from, TAIL ? rest * sizeof(T) : sizeof(v));
        return v;
    }
    void add(void *base, int64_t row, int k, const Vec &value) const {
        T *to = static_cast<T *>(base) + row * a.width + first + k * L;
        const Vec v = load(to) + value;
#ifdef __AVX512F__
        if constexpr (TAIL && sizeof(T) == 4) return _mm512_mask_storeu_ps(to, (1u << rest) - 1, (__m512)v);
        if constexpr (TAIL && sizeof(T) == 8) return _mm512_mask_storeu_pd(to, (1u << rest) - 1, (__m512d)v);
#endif
        std::memcpy(to, &v, TAIL ? rest * sizeof(T) : sizeof(v));
    }
    Vec weight(int64_t r, int p, int k) const {
        Vec v;
        std::memcpy(&v, weights + ((r * P + p) * K + k) * L, sizeof(v));
        return v;
    }
    // The radial filter of an edge.
    void filter(const T *basis, Vec (&phi)[P][K]) const {
        for (int p = 0; p < P; ++p)
            for (int k = 0; k < K; ++k) phi[p][k] = Vec{};
        for (int64_t r = 0; r < a.radial; ++r)
            for (int p = 0; p < P; ++p)
                for (int k = 0; k < K; ++k) phi[p][k] += weight(r, p, k) * basis[r];
    }
    void filter_gradient(const T *basis, const Vec (&grad)[P][K]) const {
        for (int64_t r = 0; r < a.radial; ++r)
            for (int p = 0; p < P; ++p)
                for (int k = 0; k < K; ++k) {
                    T *to = out_weights + ((r * P + p) * K + k) * L;
                    Vec v;
                    std::memcpy(&v, to, sizeof(v));
                    v += grad[p][k] * basis[r];
                    std::memcpy(to, &v, sizeof(v));
                }
    }
    void geometry_gradient(int64_t e, const Vec (&grad)[P][K], const Vec (&directed)[3]) const {
        for (int64_t r = 0; r < a.radial; ++r) {
            Vec v{};
            for (int p = 0; p < P; ++p)
                for (int k = 0; k < K; ++k) v += weight(r, p, k) * grad[p][k];
            out_basis[e * a.radial + r] += sum<T>(v);
        }
        for (int x = 0; x < 3; ++x) out_unit[e * 3 + x] += sum<T>(directed[x]);
    }
    const T *row(const void *base, int64_t e, int64_t width) const { return static_cast<const T *>(base) + e * width; }

    void forward() const {
        for (int64_t e = 0; e < a.edges; ++e) {
            const int64_t i = a.target[e], j = a.source[e];
            const T *u = row(a.unit, e, 3);
            Vec phi[P][K];
            filter(row(a.basis, e, a.radial), phi);
            for (int k = 0; k < K; ++k) {
                add(a.scalar_sum, i, k, load(a.features, j * P, k) * phi[0][k]);
                const Vec along = load(a.features, j * P + 1, k) * phi[1][k];
                Vec carried{};
                if constexpr (P == 3) carried = load(a.features, j * P + 2, k) * phi[2][k];
                for (int x = 0; x < 3; ++x) {
                    Vec m = along * u[x];
                    if constexpr (P == 3) m += carried * load(a.vectors, j * 3 + x, k);
                    add(a.vector_sum, i * 3 + x, k, m);
                }
            }
        }
    }

    void backward() const {
        for (int64_t e = 0; e < a.edges; ++e) {
            const int64_t i = a.target[e], j = a.source[e];
            const T *u = row(a.unit, e, 3), *basis = row(a.basis, e, a.radial);
            Vec phi[P][K], grad[P][K], directed[3]{};
            filter(basis, phi);
            for (int k = 0; k < K; ++k) {
                const Vec ga = load(a.grad_scalar, i, k), s0 = load(a.features, j * P, k), s1 = load(a.features, j * P + 1, k);
                Vec gb[3], bu{};
                for (int x = 0; x < 3; ++x) bu += (gb[x] = load(a.grad_vector, i * 3 + x, k)) * u[x];
                grad[0][k] = ga * s0;
                grad[1][k] = s1 * bu;
                add(a.out_features, j * P, k, ga * phi[0][k]);
                add(a.out_features, j * P + 1, k, phi[1][k] * bu);
                const Vec along = s1 * phi[1][k];
                for (int x = 0; x < 3; ++x) directed[x] += along * gb[x];
                if constexpr (P == 3) {
                    const Vec s2 = load(a.features, j * P + 2, k), carried = s2 * phi[2][k];
                    Vec bv{};
                    for (int x = 0; x < 3; ++x) {
                        bv += gb[x] * load(a.vectors, j * 3 + x, k);
                        add(a.out_vectors, j * 3 + x, k, carried * gb[x]);
                    }
                    grad[2][k] = s2 * bv;
                    add(a.out_features, j * P + 2, k, phi[2][k] * bv);
                }
            }
            if (out_basis) geometry_gradient(e, grad, directed);
            if (out_weights) filter_gradient(basis, grad);
        }
    }

    void double_backward() const {
        for (int64_t e = 0; e < a.edges; ++e) {
            const int64_t i = a.target[e], j = a.source[e];
            const T *u = row(a.unit, e, 3), *du = row(a.dot_unit, e, 3);
            const T *basis = row(a.basis, e, a.radial), *dbasis = row(a.dot_basis, e, a.radial);
            Vec phi[P][K], dphi[P][K], grad[P][K], dgrad[P][K], directed[3]{};
            filter(basis, phi);
            filter(dbasis, dphi);
            for (int k = 0; k < K; ++k) {
                const Vec ga = load(a.grad_scalar, i, k), s0 = load(a.features, j * P, k), s1 = load(a.features, j * P + 1, k);
                const Vec ds0 = load(a.dot_features, j * P, k), ds1 = load(a.dot_features, j * P + 1, k);
                Vec gb[3], bu{}, bdu{};
                for (int x = 0; x < 3; ++x) {
                    gb[x] = load(a.grad_vector, i * 3 + x, k);
                    bu += gb[x] * u[x];
                    bdu += gb[x] * du[x];
                }
                add(a.scalar_sum, i, k, ds0 * phi[0][k] + s0 * dphi[0][k]);
                add(a.out_features, j * P, k, ga * dphi[0][k]);
                add(a.out_features, j * P + 1, k, dphi[1][k] * bu + phi[1][k] * bdu);
                grad[0][k] = ga * ds0;
                dgrad[0][k] = ga * s0;
                grad[1][k] = ds1 * bu + s1 * bdu;
                dgrad[1][k] = s1 * bu;
                const Vec along = s1 * phi[1][k], dalong = ds1 * phi[1][k] + s1 * dphi[1][k];
                Vec sums[3];
                for (int x = 0; x < 3; ++x) {
                    directed[x] += dalong * gb[x];
                    sums[x] = dalong * u[x] + along * du[x];
                }
                if constexpr (P == 3) {
                    const Vec s2 = load(a.features, j * P + 2, k), ds2 = load(a.dot_features, j * P + 2, k);
                    const Vec carried = s2 * phi[2][k], dcarried = ds2 * phi[2][k] + s2 * dphi[2][k];
                    Vec bv{}, bdv{};
                    for (int x = 0; x < 3; ++x) {
                        const Vec v = load(a.vectors, j * 3 + x, k), dv = load(a.dot_vectors, j * 3 + x, k);
                        bv += gb[x] * v;
                        bdv += gb[x] * dv;
                        sums[x] += dcarried * v + carried * dv;
                        add(a.out_vectors, j * 3 + x, k, dcarried * gb[x]);
                    }
                    add(a.out_features, j * P + 2, k, dphi[2][k] * bv + phi[2][k] * bdv);
                    grad[2][k] = ds2 * bv + s2 * bdv;
                    dgrad[2][k] = s2 * bv;
                }
                for (int x = 0; x < 3; ++x) add(a.vector_sum, i * 3 + x, k, sums[x]);
            }
            if (out_basis) geometry_gradient(e, grad, directed);
            if (out_weights) {
                filter_gradient(basis, grad);
                filter_gradient(dbasis, dgrad);
            }
        }
    }
};

template <typename T, int K, int P, bool TAIL>
void run_block(const Arguments &a, Kind kind, int64_t first, T *out_basis, T *out_unit) {
    constexpr int64_t L = Lane<T>::count;
    const int64_t rest = TAIL ? a.width - first : K * L;
    const T *filter = static_cast<const T *>(a.filter);
    std::vector<T> weights(a.radial * P * K * L), gradient(a.out_filter ? weights.size() : 0);
    for (int64_t r = 0; r < a.radial; ++r)
        for (int p = 0; p < P; ++p)
            for (int64_t f = 0; f < rest; ++f)
                weights[(r * P + p) * K * L + f] = filter[(p * a.width + first + f) * a.radial + r];
    const Block<T, K, P, TAIL> block{
        a, first, rest, weights.data(), a.out_filter ? gradient.data() : nullptr, out_basis, out_unit};
    if (kind == FORWARD) block.forward();
    if (kind == BACKWARD) block.backward();
    if (kind == DOUBLE_BACKWARD) block.double_backward();
    if (!a.out_filter) return;
    T *out = static_cast<T *>(a.out_filter);
    for (int64_t r = 0; r < a.radial; ++r)
        for (int p = 0; p < P; ++p)
            for (int64_t f = 0; f < rest; ++f)
                out[(p * a.width + first + f) * a.radial + r] += gradient[(r * P + p) * K * L + f];
}

template <typename T, int K, int P>
void run_parts(const Arguments &a, Kind kind) {
    constexpr int64_t L = Lane<T>::count;
    const int64_t wide = a.width / (K * L), narrow = (a.width - wide * K * L) / L;
    const int64_t blocks = wide + narrow + (a.width % L != 0);
    const auto one = [&](int64_t b, T *out_basis, T *out_unit) {
        const int64_t first = b < wide ? b * K * L : wide * K * L + (b - wide) * L;
        if (b < wide) run_block<T, K, P, false>(a, kind, first, out_basis, out_unit);
        else if (b < wide + narrow) run_block<T, 1, P, false>(a, kind, first, out_basis, out_unit);
        else run_block<T, 1, P, true>(a, kind, first, out_basis, out_unit);
    };
    T *basis = static_cast<T *>(a.out_basis), *unit = static_cast<T *>(a.out_unit);
    const int64_t threads = a.threads < blocks ? a.threads : blocks;
    if (threads <= 1) {
        for (int64_t b = 0; b < blocks; ++b) one(b, basis, unit);
        return;
    }
    // Blocks add to the same gradients of the geometry: each to a copy of its own, summed in the order of one thread.
    const int64_t size = a.edges * (a.radial + 3);
    std::vector<T> copies(basis ? (blocks - 1) * size : 0);
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            for (int64_t b; (b = next++) < blocks;) {
                T *copy = basis && b ? copies.data() + (b - 1) * size : nullptr;
                one(b, copy ? copy : basis, copy ? copy + a.edges * a.radial : unit);
            }
        } catch (...) {
            failed = true;
        }
    };
    std::vector<std::thread> others(threads - 1);
    for (auto &thread : others) thread = std::thread(work);
    work();
    for (auto &thread : others) thread.join();
    if (failed) throw std::bad_alloc();
    for (int64_t b = 1; basis && b < blocks; ++b) {
        const T *copy = copies.data() + (b - 1) * size;
        for (int64_t k = 0; k < a.edges * a.radial; ++k) basis[k] += copy[k];
        for (int64_t k = 0; k < a.edges * 3; ++k) unit[k] += copy[a.edges * a.radial + k];
    }
}

template <typename T>
void run(const Arguments &a, Kind kind) {
    // Wide blocks share more of the work that an edge costs, narrow ones can be had by more threads.
    constexpr int64_t wide = 4 * Lane<T>::count;
    const bool few = a.threads > 1 && a.width < a.threads * wide;
    if (a.parts == 2) few ? run_parts<T, 2, 2>(a, kind) : run_parts<T, 4, 2>(a, kind);
    else few ? run_parts<T, 2, 3>(a, kind) : run_parts<T, 4, 3>(a, kind);
}

}  // namespace

// REAL, float or double, comes from the command line of the compiler.
extern "C" int gfm_message(int kind, const Arguments *arguments) {
    try {
        run<REAL>(*arguments, static_cast<Kind>(kind));
    } catch (...) {
        return 1;  // memory
    }
    return 0;
}
