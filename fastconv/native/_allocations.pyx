"""What NumPy allocates for the data of arrays, counted to the byte: :class:`ArrayAllocations`.

NumPy lets a program put its own allocator under the arrays of a context (NEP 49). This one passes every request on to the
allocator that was there before, and counts. It sees all array data, including what is allocated and freed again inside a
NumPy function, and nothing else: not Python's objects, not what a C library allocates for itself.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t

cnp.import_array()

cdef extern from *:
    """
    #include <numpy/arrayobject.h>

    typedef struct {
        PyDataMem_Handler handler;       /* what NumPy calls; its context is this struct */
        PyDataMemAllocator before;       /* what it passes requests on to, */
        PyObject *before_capsule;        /* and who owns that */
        int64_t live, peak;
    } fc_counter;

    static void fc_counted(fc_counter *counter, size_t size)
    {
        int64_t live = __atomic_add_fetch(&counter->live, (int64_t)size, __ATOMIC_RELAXED);
        int64_t peak = __atomic_load_n(&counter->peak, __ATOMIC_RELAXED);
        while (live > peak &&
               !__atomic_compare_exchange_n(&counter->peak, &peak, live, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
    }

    static void *fc_count_malloc(void *context, size_t size)
    {
        fc_counter *counter = (fc_counter *)context;
        void *memory = counter->before.malloc(counter->before.ctx, size);
        if (memory)
            fc_counted(counter, size);
        return memory;
    }

    static void *fc_count_calloc(void *context, size_t count, size_t size)
    {
        fc_counter *counter = (fc_counter *)context;
        void *memory = counter->before.calloc(counter->before.ctx, count, size);
        if (memory)
            fc_counted(counter, count * size);
        return memory;
    }

    /* NumPy does not tell the old size here, so that the old memory goes on counting: too much rather than too little. */
    static void *fc_count_realloc(void *context, void *old, size_t size)
    {
        fc_counter *counter = (fc_counter *)context;
        void *memory = counter->before.realloc(counter->before.ctx, old, size);
        if (memory)
            fc_counted(counter, size);
        return memory;
    }

    static void fc_count_free(void *context, void *memory, size_t size)
    {
        fc_counter *counter = (fc_counter *)context;
        if (memory)
            __atomic_sub_fetch(&counter->live, (int64_t)size, __ATOMIC_RELAXED);
        counter->before.free(counter->before.ctx, memory, size);
    }

    /* Every array that was made through a counter owns a reference to its capsule: this runs when the last one is gone. */
    static void fc_counter_gone(PyObject *capsule)
    {
        fc_counter *counter = (fc_counter *)PyCapsule_GetPointer(capsule, "mem_handler");
        Py_XDECREF(counter->before_capsule);
        PyMem_RawFree(counter);
    }

    static PyObject *fc_new_counter(void)
    {
        fc_counter *counter = (fc_counter *)PyMem_RawCalloc(1, sizeof(fc_counter));
        PyObject *capsule;
        if (!counter)
            return PyErr_NoMemory();
        counter->before_capsule = PyDataMem_GetHandler();
        capsule = counter->before_capsule ? PyCapsule_New(&counter->handler, "mem_handler", fc_counter_gone) : NULL;
        if (!capsule) {
            Py_XDECREF(counter->before_capsule);
            PyMem_RawFree(counter);
            return NULL;
        }
        counter->before = ((PyDataMem_Handler *)PyCapsule_GetPointer(counter->before_capsule, "mem_handler"))->allocator;
        strcpy(counter->handler.name, "fastconv_count");
        counter->handler.version = 1;
        counter->handler.allocator.ctx = counter;
        counter->handler.allocator.malloc = fc_count_malloc;
        counter->handler.allocator.calloc = fc_count_calloc;
        counter->handler.allocator.realloc = fc_count_realloc;
        counter->handler.allocator.free = fc_count_free;
        return capsule;
    }

    static int64_t fc_counter_peak(PyObject *capsule)
    {
        fc_counter *counter = (fc_counter *)PyCapsule_GetPointer(capsule, "mem_handler");
        return __atomic_load_n(&counter->peak, __ATOMIC_RELAXED);
    }
    """
    object fc_new_counter()
    int64_t fc_counter_peak(object capsule)
    object PyDataMem_SetHandler(object capsule)


cdef class ArrayAllocations:
    """A ``with`` block that counts the array data that this thread's context allocates in it.

    Attributes
    ----------
    peak : int
        The most bytes that were alive at one time, of those that were allocated inside the block.
    """

    cdef object _counter, _before

    def __cinit__(self):
        self._counter = fc_new_counter()

    def __enter__(self):
        if self._before is not None:
            raise RuntimeError("this block is running already")
        self._before = PyDataMem_SetHandler(self._counter)
        return self

    def __exit__(self, *error):
        PyDataMem_SetHandler(self._before)
        self._before = None

    @property
    def peak(self):
        return fc_counter_peak(self._counter)
