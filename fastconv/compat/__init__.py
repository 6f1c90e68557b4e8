"""Other people's names on fastconv's kernels.

:mod:`fastconv.compat.dlfs`
    ``common.util`` and ``common.layers`` of the book *Deep Learning from Scratch*.
"""
