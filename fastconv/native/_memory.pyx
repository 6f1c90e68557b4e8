"""Arrays whose memory is used again when they die, by NumPy's allocator hook (NEP 49).

Fresh memory is expensive: the kernel hands out and clears each page when it is first touched, at about a third of the
speed of writing to pages that are there, which is more than the arithmetic of a convolution with few channels. So the
blocks of large results are kept, a bounded number of bytes of them, when the arrays that own them are freed, and given
to the next results of about that size. The arrays are ordinary ones: they own their memory, may be resized, outlive
fastconv's interest in them, and are freed by whoever drops the last reference, in any thread.
"""

cimport numpy as cnp

from numpy import empty as _empty

cnp.import_array()

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #if !defined(_WIN32)
    #include <pthread.h>
    #endif
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif

    /* In front of every block: how large it is. The block behind starts at a cache line. */
    typedef struct { size_t bytes; char pad[56]; } fc_header;

    enum { FC_SLOTS = 32, FC_HUGE_PAGE = 1 << 21 };

    /* Freed blocks, the one freed last at the end. */
    static struct { fc_header *block[FC_SLOTS]; int count; size_t bytes, limit; } fc_kept = {{0}, 0, 0, 0};
    static char fc_lock = 0;

    static void fc_enter(void) { while (__atomic_test_and_set(&fc_lock, __ATOMIC_ACQUIRE)) {} }
    static void fc_leave(void) { __atomic_clear(&fc_lock, __ATOMIC_RELEASE); }

    /* A fork while another thread is in here would leave the child a lock that nobody opens, and half of a change: whoever
     * forks waits until none is. (Where there is a GIL it does that; a free-threaded Python has none.) */
    static int fc_watch_forks(void)
    {
    #if defined(_WIN32)
        return 0;
    #else
        return pthread_atfork(fc_enter, fc_leave, fc_leave);
    #endif
    }

    static fc_header *fc_drop(int i)
    {
        fc_header *block = fc_kept.block[i];
        fc_kept.bytes -= block->bytes;
        fc_kept.count--;
        memmove(fc_kept.block + i, fc_kept.block + i + 1, (size_t)(fc_kept.count - i) * sizeof block);
        return block;
    }

    static void fc_trim(size_t limit)
    {
        for (;;) {
            fc_header *old = NULL;
            fc_enter();
            if (fc_kept.count && (fc_kept.bytes > limit || fc_kept.count == FC_SLOTS))
                old = fc_drop(0);
            fc_leave();
            if (!old)
                return;
            free(old);
        }
    }

    static void *fc_malloc(void *context, size_t bytes)
    {
        fc_header *block = NULL;
        int i, best = -1;
        (void)context;
        fc_enter();
        for (i = 0; i < fc_kept.count; i++) {
            const size_t has = fc_kept.block[i]->bytes;
            /* of those that fit equally well the one freed last, which is most likely to be in a cache */
            if (has >= bytes && has - bytes <= bytes / 4 && (best < 0 || has <= fc_kept.block[best]->bytes))
                best = i;
        }
        if (best >= 0)
            block = fc_drop(best);
        fc_leave();
        if (block)
            return block + 1;
        if (bytes > SIZE_MAX - sizeof *block - FC_HUGE_PAGE)
            return NULL;
        if (posix_memalign((void **)&block, bytes >= 2 * FC_HUGE_PAGE ? FC_HUGE_PAGE : 4096, bytes + sizeof *block))
            return NULL;
    #if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (bytes >= 2 * FC_HUGE_PAGE)
            (void)madvise(block, (bytes + sizeof *block) & ~(size_t)4095, MADV_HUGEPAGE);
    #endif
        block->bytes = bytes;
        return block + 1;
    }

    static void fc_free(void *context, void *memory, size_t bytes)
    {
        fc_header *block;
        (void)context;
        (void)bytes;
        if (!memory)
            return;
        block = (fc_header *)memory - 1;
        if (block->bytes > fc_kept.limit) {
            free(block);
            return;
        }
        fc_trim(fc_kept.limit - block->bytes);
        fc_enter();
        if (fc_kept.count < FC_SLOTS && fc_kept.bytes + block->bytes <= fc_kept.limit) {
            fc_kept.block[fc_kept.count++] = block;
            fc_kept.bytes += block->bytes;
            block = NULL;
        }
        fc_leave();
        free(block);
    }

    static void *fc_calloc(void *context, size_t count, size_t each)
    {
        void *memory;
        if (each && count > SIZE_MAX / each)
            return NULL;
        memory = fc_malloc(context, count * each);
        return memory ? memset(memory, 0, count * each) : NULL;
    }

    static void *fc_realloc(void *context, void *memory, size_t bytes)
    {
        void *moved;
        size_t had = memory ? ((fc_header *)memory - 1)->bytes : 0;
        moved = fc_malloc(context, bytes);
        if (!moved)
            return NULL;
        if (memory) {
            memcpy(moved, memory, had < bytes ? had : bytes);
            fc_free(context, memory, had);
        }
        return moved;
    }

    static PyDataMem_Handler fc_handler = {"fastconv", 1, {NULL, fc_malloc, fc_calloc, fc_realloc, fc_free}};

    static size_t fc_set_limit(size_t limit)
    {
        size_t before = fc_kept.limit;
        fc_kept.limit = limit;
        fc_trim(limit);
        return before;
    }
    static size_t fc_kept_bytes(void) { return fc_kept.bytes; }
    """
    ctypedef struct PyDataMem_Handler:
        pass
    PyDataMem_Handler fc_handler
    size_t fc_set_limit(size_t limit)
    void fc_trim(size_t limit)
    size_t fc_kept_bytes()
    int fc_watch_forks()

cdef extern from "Python.h":
    object PyCapsule_New(void* pointer, const char* name, void* destructor)

cdef extern from "numpy/arrayobject.h":
    object PyDataMem_SetHandler(object handler)

cdef object _handler = PyCapsule_New(&fc_handler, "mem_handler", NULL)

if fc_watch_forks():
    raise MemoryError("no memory to watch forks with")


def empty(shape, dtype):
    """``np.empty(shape, dtype)`` in recycled memory."""
    before = PyDataMem_SetHandler(_handler)
    try:
        return _empty(shape, dtype)
    finally:
        PyDataMem_SetHandler(before)


def set_limit(size_t nbytes):
    """Keep at most `nbytes` of freed blocks, 0 for none; returns the limit before."""
    return fc_set_limit(nbytes)


def release():
    """Give all kept blocks back."""
    fc_trim(0)


def handler():
    """NumPy's capsule of the allocator (NEP 49): its functions need no GIL, which is how tests call them."""
    return _handler


def kept_bytes():
    """Bytes of the blocks that are kept now."""
    return fc_kept_bytes()
