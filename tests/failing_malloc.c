/* For LD_PRELOAD: an allocator that fails when it is told to, and knows how many bytes are in use (test_out_of_memory.py).
 *
 * fc_fail(n, least): of the allocations of at least `least` bytes that follow, number n (from 0) fails, once. n < 0: none.
 * fc_failed(): how many have failed so far. fc_in_use(): bytes that are allocated now. */
#include <errno.h>
#include <malloc.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static long countdown = -1, failed = 0, in_use = 0;
static size_t smallest = 0;

void fc_fail(long n, size_t least)
{
    smallest = least;
    __atomic_store_n(&countdown, n, __ATOMIC_SEQ_CST);
}
long fc_failed(void) { return failed; }
long fc_in_use(void) { return __atomic_load_n(&in_use, __ATOMIC_RELAXED); }

static int refuse(size_t bytes)
{
    if (countdown < 0 || bytes < smallest)
        return 0;
    if (__atomic_fetch_sub(&countdown, 1, __ATOMIC_SEQ_CST) != 0)
        return 0;
    failed++;
    errno = ENOMEM;
    return 1;
}

static void *counted(void *memory)
{
    if (memory)
        __atomic_add_fetch(&in_use, (long)malloc_usable_size(memory), __ATOMIC_RELAXED);
    return memory;
}

void *malloc(size_t bytes) { return refuse(bytes) ? NULL : counted(__libc_malloc(bytes)); }
void *calloc(size_t count, size_t each) { return refuse(count * each) ? NULL : counted(__libc_calloc(count, each)); }
void *memalign(size_t to, size_t bytes) { return refuse(bytes) ? NULL : counted(__libc_memalign(to, bytes)); }
void *aligned_alloc(size_t to, size_t bytes) { return memalign(to, bytes); }

int posix_memalign(void **memory, size_t to, size_t bytes)
{
    void *got = memalign(to, bytes);
    if (!got)
        return ENOMEM;
    *memory = got;
    return 0;
}

void free(void *memory)
{
    if (memory)
        __atomic_sub_fetch(&in_use, (long)malloc_usable_size(memory), __ATOMIC_RELAXED);
    __libc_free(memory);
}

void *realloc(void *memory, size_t bytes)
{
    long before = memory ? (long)malloc_usable_size(memory) : 0;
    void *moved;
    if (refuse(bytes))
        return NULL;
    moved = __libc_realloc(memory, bytes);
    if (moved || !bytes)
        __atomic_sub_fetch(&in_use, before, __ATOMIC_RELAXED);
    return counted(moved);
}
