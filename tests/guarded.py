"""Memory with pages at both ends that nothing may touch: a kernel that reads or writes beside its arrays is killed there."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np


def guarded(array: np.ndarray, *, at_end: bool) -> np.ndarray:
    """Return a copy of `array` that begins right behind such a page or, with `at_end`, ends right before one."""
    page = mmap.PAGESIZE
    pages = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, pages + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, np.uint8)  # holds the mapping for as long as there are views of it
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for start in (0, page + pages):
        if protect(ctypes.c_void_p(whole.ctypes.data + start), ctypes.c_size_t(page), ctypes.c_int(0)):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = page + (pages - array.nbytes if at_end else 0)
    copy = whole[first:first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
