# What this machine does at most: the work of machine.h, dealt out to threads. Each function does a fixed amount of it and
# returns how much that was; the clock is the caller's (fastconv.benchmarks.machine).

cdef extern from "machine.h" nogil:
    void fc_fma_loop_f32(ptrdiff_t rounds)
    void fc_fma_loop_f64(ptrdiff_t rounds)
    double fc_fma_round_flops(ptrdiff_t itemsize)
    void fc_read_loop(const char* source, ptrdiff_t nbytes)


def fma_loop(Py_ssize_t rounds, Py_ssize_t itemsize, int threads):
    """Do `rounds` of multiply-adds in each thread, on floats of `itemsize` bytes, and return the number of operations."""
    cdef int i
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        if itemsize == 4:
            fc_fma_loop_f32(rounds)
        else:
            fc_fma_loop_f64(rounds)
    return threads * rounds * fc_fma_round_flops(itemsize)


cdef inline Py_ssize_t part_start(Py_ssize_t nbytes, int part, int parts) noexcept nogil:
    """Where a thread's part of `nbytes` begins: at a page, so that no two threads touch one."""
    return nbytes if part == parts else nbytes // parts * part // 4096 * 4096


def copy_loop(cnp.ndarray to, cnp.ndarray source, int threads):
    """Copy an array of bytes; return the bytes read and written."""
    cdef Py_ssize_t start, nbytes = to.nbytes
    cdef char* t = <char*> cnp.PyArray_DATA(to)
    cdef const char* s = <const char*> cnp.PyArray_DATA(source)
    cdef int i
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        start = part_start(nbytes, i, threads)
        memcpy(t + start, s + start, part_start(nbytes, i + 1, threads) - start)
    return 2 * nbytes


def store_loop(cnp.ndarray to, int threads):
    """Fill an array of bytes; return the bytes written. Not with zeros, which some processors and hosts do not write to memory."""
    cdef Py_ssize_t start, nbytes = to.nbytes
    cdef char* t = <char*> cnp.PyArray_DATA(to)
    cdef int i
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        start = part_start(nbytes, i, threads)
        memset(t + start, 1, part_start(nbytes, i + 1, threads) - start)
    return nbytes


def read_loop(cnp.ndarray source, int threads):
    """Read an array of bytes; return the bytes read."""
    cdef Py_ssize_t start, nbytes = source.nbytes
    cdef const char* s = <const char*> cnp.PyArray_DATA(source)
    cdef int i
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        start = part_start(nbytes, i, threads)
        fc_read_loop(s + start, part_start(nbytes, i + 1, threads) - start)
    return nbytes
