"""Convolution: who is fastest on each layer, forward and backward, and what happens when one layer varies."""

from __future__ import annotations

import pytest


@pytest.mark.jobs("forward")
def test_forward(hand_over):
    hand_over()


@pytest.mark.jobs("backward")
def test_backward(hand_over):
    """dx, dw and db together, as a training step needs them."""
    hand_over()


@pytest.mark.jobs("sweeps")
def test_forward_sweep(hand_over):
    hand_over()
