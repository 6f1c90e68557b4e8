"""Other people's names on fastconv's kernels.

:mod:`fastconv.compat.dlfs`
    ``common.util`` and ``common.layers`` of the book *Deep Learning from Scratch*.
:mod:`fastconv.compat.cs231n`
    The fast layers of Stanford's course cs231n.
:mod:`fastconv.compat.keras`
    Keras's convolutions and poolings, channels last.
:mod:`fastconv.compat.scipy_signal`
    ``scipy.signal``'s convolutions of one and two axes.
"""
