# What the kernel files of one ISA module share. Every function here and in the other .pxi files takes checked, C-contiguous
# arrays of native byte order and a geometry, and fills `out`: no policy, no allocation but what Python hands in.

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset

cnp.import_array()

ctypedef fused real:
    float
    double

# One copy of a window's numbers in C, read from a geometry object once in a call.
cdef struct Window:
    Py_ssize_t n, c, h, w
    Py_ssize_t kh, kw, sh, sw, dh, dw
    Py_ssize_t top, left
    Py_ssize_t oh, ow
    Py_ssize_t k, groups


cdef Window read_window(object geometry):
    cdef Window v
    v.n, v.c = geometry.batch, geometry.channels
    v.h, v.w = geometry.in_size
    v.kh, v.kw = geometry.kernel
    v.sh, v.sw = geometry.stride
    v.dh, v.dw = geometry.dilation
    (v.top, _), (v.left, _) = geometry.pads
    v.oh, v.ow = geometry.out_size
    v.k, v.groups = 0, 1
    return v


cdef Window read_conv(object geometry):
    cdef Window v = read_window(geometry)
    v.k, v.groups = geometry.out_channels, geometry.groups
    return v


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t most(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a > b else b


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """Quotient rounded up, for b > 0 and any a (C's division rounds towards zero)."""
    return a // b + (1 if a % b > 0 else 0)


cdef inline Py_ssize_t floor_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a // b - (1 if a % b < 0 else 0)


cdef inline Py_ssize_t aligned(Py_ssize_t nbytes) noexcept nogil:
    """`nbytes` rounded up to cache lines, plus one: a power of two between arrays makes their rows share cache sets."""
    return (nbytes + 63) // 64 * 64 + 64


cdef void inside(Py_ssize_t size, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count, Py_ssize_t* first,
                 Py_ssize_t* stop) noexcept nogil:
    """The range [first, stop) of i in [0, count) for which 0 <= start + i*step < size."""
    first[0] = least(most(ceil_div(-start, step), 0), count)
    stop[0] = most(least(ceil_div(size - start, step), count), first[0])


cdef void pad_image(const Window* v, Py_ssize_t padded_h, Py_ssize_t padded_w, const real* image, real* padded) noexcept nogil:
    """Copies an image into a padded one, whose padding is left as it is."""
    cdef Py_ssize_t c, y
    for c in range(v.c):
        for y in range(v.h):
            memcpy(padded + (c * padded_h + v.top + y) * padded_w + v.left, image + (c * v.h + y) * v.w, v.w * sizeof(real))


cdef void cut_image(const Window* v, Py_ssize_t padded_h, Py_ssize_t padded_w, const real* padded, real* image) noexcept nogil:
    """The other way round."""
    cdef Py_ssize_t c, y
    for c in range(v.c):
        for y in range(v.h):
            memcpy(image + (c * v.h + y) * v.w, padded + (c * padded_h + v.top + y) * padded_w + v.left, v.w * sizeof(real))
