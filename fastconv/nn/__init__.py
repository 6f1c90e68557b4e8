"""Neural networks on NumPy arrays: layers, a small network, training, data and pictures.

======================  ===========================================================================================
:mod:`.layers`          Conv2d, MaxPool2d, AvgPool2d, Relu, Affine, Flatten, Dropout, SoftmaxWithLoss
:mod:`.models`          SimpleConvNet, the network of *Deep Learning from Scratch*, chapter 7
:mod:`.train`           SGD, Momentum, Adam, and Trainer: mini-batches, history, progress
:mod:`.datasets`        load_mnist, load_idx, load_digits
:mod:`.plot`            plot_learning_curves, plot_filters (needs matplotlib)
:mod:`.numpy_layers`    the same network by im2col in NumPy, to compare with
======================  ===========================================================================================
"""

from .datasets import Dataset, load_digits, load_idx, load_mnist
from .layers import (
    Affine,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Relu,
    SoftmaxWithLoss,
    softmax,
)
from .models import SimpleConvNet
from .plot import plot_filters, plot_learning_curves
from .train import SGD, Adam, EpochRecord, History, Momentum, Trainer, terminal_progress

__all__ = [
    "SGD",
    "Adam",
    "Affine",
    "AvgPool2d",
    "Conv2d",
    "Dataset",
    "Dropout",
    "EpochRecord",
    "Flatten",
    "History",
    "Layer",
    "MaxPool2d",
    "Momentum",
    "Relu",
    "SimpleConvNet",
    "SoftmaxWithLoss",
    "Trainer",
    "load_digits",
    "load_idx",
    "load_mnist",
    "plot_filters",
    "plot_learning_curves",
    "softmax",
    "terminal_progress",
]
