"""Pooling: max and average, forward and backward."""

from __future__ import annotations

import pytest


@pytest.mark.jobs("max_pool")
def test_max_pool(hand_over):
    hand_over()


@pytest.mark.jobs("max_pool_backward")
def test_max_pool_backward(hand_over):
    hand_over()


@pytest.mark.jobs("avg_pool")
def test_avg_pool(hand_over):
    hand_over()


@pytest.mark.jobs("avg_pool_backward")
def test_avg_pool_backward(hand_over):
    hand_over()
