"""Processes, interrupts, other libraries, and nothing that piles up (rule 15 and beyond).

Each test is a script in an interpreter of its own: it may hang, which is a failure by its time limit, or crash.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest
from processes import output_of

from fastconv.options import backend_available

#: Calls of every kind with answers that are known, for the scripts below: small, with threads, through every algorithm.
WORK = '''
import os, sys, threading, time, warnings
import numpy as np
import fastconv
from fastconv.options import current

rng = np.random.default_rng(0)
x = rng.standard_normal((4, 16, 40, 41)).astype("f4")
w = rng.standard_normal((16, 16, 3, 3)).astype("f4")
tiny, filters = x[:1, :3, :8, :8].copy(), w[:4, :3].copy()

def compute():
    names = ("auto", *fastconv.dispatch.algorithms("forward", current().backend))
    out = [fastconv.conv2d(x, w, padding=1, algorithm=name) for name in names]
    out += fastconv.conv2d_backward(out[0], x, w, padding=1)
    values, where = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    out += [values, where, fastconv.max_pool2d_backward(values, where, x.shape), fastconv.avg_pool2d(x, 3)]
    out += [fastconv.avg_pool2d_backward(values, x.shape, 3, 2, 1), fastconv.conv2d(tiny, filters, padding=1)]
    col = fastconv.im2col(x, 3, 3)
    out += [col, fastconv.col2im(col, x.shape, 3, 3), fastconv.conv_transpose2d(x, w, stride=2)]
    packed = fastconv.pack_weight(w, x.shape, 1, 1)
    out += [fastconv.conv2d(x, packed, None, 1, 1), fastconv.conv2d(x, w, padding=2, padding_mode="reflect")]
    out += fastconv.adaptive_max_pool2d(x, (7, 5), return_indices=True)
    mean = fastconv.adaptive_avg_pool2d(x, (7, 5))
    out += [mean, fastconv.adaptive_avg_pool2d_backward(mean, x.shape), fastconv.lp_pool2d(x, 2, 3)]
    out += [fastconv.max_unpool2d(values, where, 3, 2, 1, output_size=x.shape), fastconv.max_unpool2d_backward(x, where)]
    return out + [fastconv.lp_pool2d_backward(fastconv.lp_pool2d(x, 2, 3), x, 2, 3), fastconv.global_max_pool2d(x)]

def same(want):
    return all(np.array_equal(a, b) for a, b in zip(compute(), want, strict=True))
'''

needs_extensions = pytest.mark.skipif(find_spec("fastconv.native._cpu") is None, reason="cython is not installed")
pytestmark = needs_extensions


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, tmp_path):
    """Children of a process that used threads, by every start method, and a pool of concurrent.futures."""
    if method not in __import__("multiprocessing").get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    script = tmp_path / "script.py"
    script.write_text(WORK + '''
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def child(want, answers):
    answers.put(same(want))

def pooled(want):
    return same(want)

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: what this is about
    context = multiprocessing.get_context(sys.argv[1])
    fastconv.options(num_threads=3)
    want = compute()
    answers = context.Queue()
    children = [context.Process(target=child, args=(want, answers)) for _ in range(2)]
    for process in children: process.start()
    print([answers.get(timeout=100) for _ in children])
    for process in children: process.join()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        print(list(pool.map(pooled, [want] * 3)), same(want))
''')
    assert output_of(script, method) == "[True, True]\n[True, True, True] True\n"


@pytest.mark.parametrize("backend", ["cython", "numba"])
def test_many_threads_call_everything_while_others_change_the_settings(backend):
    """16 threads for a few seconds; STRESS_SECONDS makes it longer."""
    if not backend_available(backend):
        pytest.skip(f"{backend} is not installed")
    printed = output_of(WORK + '''
from concurrent.futures import ThreadPoolExecutor
fastconv.options(num_threads=2)
want = compute()
end = time.monotonic() + float(sys.argv[1])
start = threading.Barrier(16)

def work(seed):
    order = np.random.default_rng(seed)
    start.wait()
    rounds = 0
    while time.monotonic() < end:
        if seed == 0:
            fastconv.options(num_threads=int(order.integers(1, 9)))
            fastconv.release_memory()
        elif seed < 4:
            with fastconv.options(num_threads=seed, accuracy="standard"):
                if not same(want):
                    return f"wrong with {seed} threads of its own"
        elif not same(want):
            return "wrong"
        rounds += 1
    return rounds

with ThreadPoolExecutor(16) as pool:
    results = list(pool.map(work, range(16)))
wrong = [result for result in results if isinstance(result, str)]
print(wrong, same(want))
''', os.environ.get("STRESS_SECONDS", "3"), timeout=300, FASTCONV_BACKEND=backend)
    assert printed == "[] True\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind there")
def test_an_interrupt_during_a_long_call_leaves_the_library_usable():
    printed = output_of(WORK + '''
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
want = compute()
large, many = np.ones((2, 64, 120, 120), "f4"), np.ones((64, 64, 3, 3), "f4")
calls = {
    "forward": lambda: fastconv.conv2d(large, many, algorithm="direct"),
    "im2col": lambda: fastconv.conv2d(large, many, algorithm="im2col"),
    "weight": lambda: fastconv.conv2d_backward_weight(large, large, many.shape, padding=1),
    "pooling": lambda: [fastconv.max_pool2d(large, 7, 1, 3, return_indices=True) for _ in range(4)],
}
interrupted = 0
for name, call in calls.items():
    call()
    for wait in (0.001, 0.02):
        timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                call()
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert same(want), name
print(interrupted)
''', timeout=300)
    assert printed == "8\n"


def test_nothing_piles_up_in_a_hundred_thousand_calls():
    """Resident size and references after very many calls, of which many are wrong."""
    printed = output_of(WORK + '''
import gc

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

wrong = [lambda: fastconv.conv2d(tiny, w), lambda: fastconv.conv2d(tiny, filters, out=tiny),
         lambda: fastconv.max_pool2d(tiny, 3, 0), lambda: fastconv.conv2d(tiny, filters, algorithm="fft"),
         lambda: fastconv.im2col(tiny, 30, 3), lambda: fastconv.max_pool2d_backward(tiny, tiny.astype(int) + 10**6, tiny.shape)]
pooled, where = fastconv.max_pool2d(tiny, 2, return_indices=True)
strided = np.asfortranarray(tiny)
right = [lambda: fastconv.conv2d(tiny, filters), lambda: fastconv.conv2d(strided, filters, padding=1),
         lambda: fastconv.conv2d_backward(np.ones((1, 4, 6, 6), "f4"), tiny, filters), lambda: fastconv.im2col(tiny, 3, 3),
         lambda: fastconv.max_pool2d(tiny, 2), lambda: fastconv.max_pool2d_backward(pooled, where, tiny.shape),
         lambda: fastconv.avg_pool2d(tiny, 2), lambda: fastconv.conv2d(tiny, filters, algorithm="im2col"),
         lambda: fastconv.conv2d(tiny, filters, None, 1, 1, activation="relu"), lambda: fastconv.conv2d(x, w[:, :, :1, :1])]

def rounds(count):
    for i in range(count):
        right[i % len(right) if i % 200 else -1]()
        if i % 10 == 0:
            try:
                wrong[i // 10 % len(wrong)]()
            except (ValueError, TypeError):
                pass
            else:
                print("no error")

arrays = (x, w, tiny, filters, strided, pooled, where)
del right[-1]
right.append(lambda: fastconv.max_pool2d(tiny, 3, 1))
rounds(5_000)
gc.collect()
references, before = [sys.getrefcount(array) for array in arrays], resident()
rounds(100_000)
gc.collect()
print([sys.getrefcount(array) for array in arrays] == references)
print(resident() - before if resident() - before > 1024 else "level")
''', timeout=300)
    assert printed == "True\nlevel\n"


@pytest.mark.parametrize("first", ["fastconv", "other"])
@pytest.mark.parametrize("other", ["sklearn", "torch"])
def test_beside_another_openmp_runtime(other, first):
    """Two OpenMP run-time libraries in one process, in either order, each with its threads."""
    if find_spec(other) is None:
        pytest.skip(f"{other} is not installed")
    use = {"sklearn": '''
from sklearn.cluster import KMeans
def use():
    return KMeans(3, n_init=1, max_iter=3, random_state=0).fit(np.random.default_rng(0).standard_normal((2000, 8))).inertia_ > 0
''', "torch": '''
import torch
torch.set_num_threads(2)
def use():
    got = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy()
    return np.allclose(got, want[0], atol=1e-3)
'''}[other]
    ours = "fastconv.options(num_threads=2)\nwant = compute()\n"
    imports = f"import {other}\n" if first == "other" else ""
    printed = output_of(imports + WORK + ours + use + '''
results = [use() and same(want) for _ in range(2)]
workers = [threading.Thread(target=lambda: results.append(use() and same(want))) for _ in range(2)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(results)
''')
    assert printed == f"{[True] * 4}\n"


def test_threadpoolctl_sees_and_limits_our_threads():
    if find_spec("threadpoolctl") is None:
        pytest.skip("threadpoolctl is not installed")
    printed = output_of(WORK + '''
import threadpoolctl
from fastconv import native
from fastconv.options import current, effective_threads
want = compute()
pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"]
print(len(pools) >= 1 if native._cpu.OPENMP else True)
fastconv.options(num_threads=4)
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    print(effective_threads(current()), same(want))
print(same(want))
''', OMP_NUM_THREADS="4")
    assert printed == "True\n1 True\nTrue\n"
