// The arithmetic that rules are written in: plain numbers, and dual numbers for forward mode.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define TORCHOPT_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define TORCHOPT_INLINE __forceinline
#else
#define TORCHOPT_INLINE inline __attribute__((always_inline))
#endif

namespace torchopt {

// x + e * epsilon, with epsilon^2 = 0: e is the derivative of x in some direction.
template <class S>
struct Dual {
  S x, e;
};

template <class S>
TORCHOPT_INLINE Dual<S> operator-(Dual<S> a) {
  return {-a.x, -a.e};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator+(Dual<S> a, Dual<S> b) {
  return {a.x + b.x, a.e + b.e};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator-(Dual<S> a, Dual<S> b) {
  return {a.x - b.x, a.e - b.e};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator*(Dual<S> a, Dual<S> b) {
  return {a.x * b.x, a.e * b.x + a.x * b.e};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator/(Dual<S> a, Dual<S> b) {
  const S q = a.x / b.x;
  return {q, (a.e - q * b.e) / b.x};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator+(Dual<S> a, S b) {
  return {a.x + b, a.e};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator*(S a, Dual<S> b) {
  return {a * b.x, a * b.e};
}
template <class S>
TORCHOPT_INLINE Dual<S> operator/(S a, Dual<S> b) {
  const S q = a / b.x;
  return {q, -q * b.e / b.x};
}

template <class S>
TORCHOPT_INLINE S value(S a) {
  return a;
}
template <class S>
TORCHOPT_INLINE S value(Dual<S> a) {
  return a.x;
}

template <class S>
TORCHOPT_INLINE S constant(S a, S) {
  return a;
}
template <class S>
TORCHOPT_INLINE Dual<S> constant(S a, Dual<S>) {
  return {a, S(0)};
}

TORCHOPT_INLINE float square_root(float a) { return sqrtf(a); }
TORCHOPT_INLINE double square_root(double a) { return sqrt(a); }

TORCHOPT_INLINE float smallest(float) { return 1e-36f; }
TORCHOPT_INLINE double smallest(double) { return 1e-200; }

// The square root, and its derivative.
//
// Where a graph is recorded, numbers are lifted to a floor whose root vanishes beside any epsilon,
// and there the derivative is zero: in every order, not infinite.
template <class S>
struct Root {
  S floor;

  TORCHOPT_INLINE explicit Root(bool lifted) : floor(lifted ? smallest(S()) : S(-INFINITY)) {}

  TORCHOPT_INLINE S operator()(S a) const { return square_root(a < floor ? floor : a); }
  TORCHOPT_INLINE S slope(S a, S root) const { return a > floor ? S(0.5) / root : S(0); }

  TORCHOPT_INLINE Dual<S> operator()(Dual<S> a) const {
    const S root = (*this)(a.x);
    return {root, slope(a.x, root) * a.e};
  }
  TORCHOPT_INLINE Dual<S> slope(Dual<S> a, Dual<S> root) const {
    const Dual<S> half = S(0.5) / root;
    return {a.x > floor ? half.x : S(0), a.x > floor ? half.e : S(0)};
  }
};

}  // namespace torchopt
