"""Neural networks on NumPy arrays: layers, a small network, training, data and pictures.

======================  ===========================================================================================
:mod:`.layers`          Conv2d, MaxPool2d, AvgPool2d, Relu, Sigmoid, Tanh, Affine, Flatten, Dropout, LocalResponseNorm,
                        SoftmaxWithLoss
:mod:`.models`          Sequential, LeNet5, AlexNet, KerasConvNet, and SimpleConvNet and DeepConvNet of *Deep Learning
                        from Scratch*
:mod:`.train`           SGD, Momentum, Adam, and Trainer: mini-batches, history, progress
:mod:`.datasets`        load_mnist, load_idx, load_digits
:mod:`.plot`            plot_learning_curves, plot_filters, plot_filter_grid, plot_feature_maps (needs matplotlib)
:mod:`.numpy_layers`    the same network by im2col in NumPy, to compare with
======================  ===========================================================================================
"""

from .datasets import Dataset, load_digits, load_idx, load_mnist
from .layers import (
    INITIALIZERS,
    Affine,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    LocalResponseNorm,
    MaxPool2d,
    Relu,
    Sigmoid,
    SoftmaxWithLoss,
    Tanh,
    softmax,
)
from .models import AlexNet, DeepConvNet, KerasConvNet, LeNet5, Network, Sequential, SimpleConvNet
from .plot import plot_feature_maps, plot_filter_grid, plot_filters, plot_learning_curves
from .train import SGD, Adam, EpochRecord, History, Momentum, Trainer, terminal_progress

__all__ = [
    "INITIALIZERS",
    "SGD",
    "Adam",
    "Affine",
    "AlexNet",
    "AvgPool2d",
    "Conv2d",
    "Dataset",
    "DeepConvNet",
    "Dropout",
    "EpochRecord",
    "Flatten",
    "History",
    "KerasConvNet",
    "Layer",
    "LeNet5",
    "LocalResponseNorm",
    "MaxPool2d",
    "Momentum",
    "Network",
    "Relu",
    "Sequential",
    "Sigmoid",
    "SimpleConvNet",
    "SoftmaxWithLoss",
    "Tanh",
    "Trainer",
    "load_digits",
    "load_idx",
    "load_mnist",
    "plot_feature_maps",
    "plot_filter_grid",
    "plot_filters",
    "plot_learning_curves",
    "softmax",
    "terminal_progress",
]
