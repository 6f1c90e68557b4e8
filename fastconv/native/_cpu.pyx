"""What this CPU can run, and what the extension modules were built with. Compiled for the architecture's baseline.

FC_ISA_TABLE comes from the ISA table in setup.py: one FC_ISA(name, predicate) for each module beyond the baseline, where
the predicate asks the CPU for every feature that the module's compiler flags allow.
"""

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FC_OPENMP _OPENMP
    #else
    #define FC_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    #endif

    static const char *const fc_isa_names[] = {
    #define FC_ISA(name, predicate) name,
        FC_ISA_TABLE
    #undef FC_ISA
        0};

    static int fc_isa_runs(int which)
    {
        int i = 0;
        (void)which; (void)i;
    #define FC_HAS(feature) __builtin_cpu_supports(feature)
    #define FC_ISA(name, predicate) if (which == i++) return (predicate) ? 1 : 0;
        FC_ISA_TABLE
    #undef FC_ISA
        return 0;
    }

    #ifdef _WIN32
    static int fc_startable(int threads) { return threads; }
    #else
    #include <pthread.h>
    #include <stdlib.h>

    static void *fc_wait_for(void *gate)
    {
        pthread_mutex_lock((pthread_mutex_t *)gate);
        pthread_mutex_unlock((pthread_mutex_t *)gate);
        return NULL;
    }

    static int fc_startable(int threads)
    {
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        pthread_t *started = (pthread_t *)malloc((size_t)threads * sizeof *started);
        int i, count = 0;
        if (!started)
            return 0;
        pthread_mutex_lock(&gate); /* until all are there: one after the other would always find room */
        while (count < threads && pthread_create(started + count, NULL, fc_wait_for, &gate) == 0)
            count++;
        pthread_mutex_unlock(&gate);
        for (i = 0; i < count; i++)
            pthread_join(started[i], NULL);
        free(started);
        return count;
    }
    #endif

    #if defined(__clang__)
    #define FC_COMPILER "clang " __clang_version__
    #else
    #define FC_COMPILER "gcc " __VERSION__
    #endif
    """
    const char* FC_COMPILER
    int FC_OPENMP
    const char** fc_isa_names
    int fc_isa_runs(int which)
    int omp_get_max_threads() nogil
    int fc_startable(int threads) nogil

#: The compiler that built the extension modules.
COMPILER = FC_COMPILER.decode()

#: The OpenMP specification's date (yyyymm) that the modules were built with, 0 without OpenMP.
OPENMP = FC_OPENMP


def isa_table():
    """``{name: does this CPU run it}`` for each module beyond the baseline, the widest first."""
    table = {}
    i = 0
    while fc_isa_names[i] != NULL:
        table[fc_isa_names[i].decode()] = bool(fc_isa_runs(i))
        i += 1
    return table


def openmp_threads():
    """The most threads that OpenMP would use now in this thread: what OMP_NUM_THREADS and threadpoolctl set."""
    return omp_get_max_threads()


def startable_threads(int threads):
    """How many of so many more threads this process may start now: it starts them, and lets them end."""
    with nogil:
        threads = fc_startable(threads)
    return threads
