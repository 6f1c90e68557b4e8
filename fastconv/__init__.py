"""Convolution and pooling for plain NumPy arrays at the speed of the hardware."""

from . import waiting  # noqa: F401  # first, because it imports NumPy
from ._version import __version__
from .dispatch import plan_conv2d
from .functional import (
    avg_pool2d,
    avg_pool2d_backward,
    col2im,
    conv2d,
    conv2d_backward,
    conv2d_backward_data,
    conv2d_backward_weight,
    conv_transpose2d,
    global_avg_pool2d,
    global_max_pool2d,
    im2col,
    max_pool2d,
    max_pool2d_backward,
    pack_weight,
)
from .geometry import conv_output_size
from .memory import release_memory
from .options import options, show_config
from .poolings import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_max_pool2d,
    lp_pool2d,
    lp_pool2d_backward,
    max_unpool2d,
    max_unpool2d_backward,
)
from .profile import profile_conv2d

__all__ = [
    "__version__",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "avg_pool2d_backward",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv2d_backward_data",
    "conv2d_backward_weight",
    "conv_output_size",
    "conv_transpose2d",
    "global_avg_pool2d",
    "global_max_pool2d",
    "im2col",
    "lp_pool2d",
    "lp_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "options",
    "pack_weight",
    "plan_conv2d",
    "profile_conv2d",
    "release_memory",
    "show_config",
]
