"""im2col and col2im in the layouts that others have: "columns" as PyTorch's unfold, "rows" as the book's."""

from __future__ import annotations

import pytest


@pytest.mark.jobs("im2col")
def test_im2col_columns(hand_over):
    hand_over()


@pytest.mark.jobs("im2col_rows")
def test_im2col_rows(hand_over):
    hand_over()


@pytest.mark.jobs("col2im")
def test_col2im_columns(hand_over):
    hand_over()


@pytest.mark.jobs("col2im_rows")
def test_col2im_rows(hand_over):
    hand_over()
