"""Remarks of libraries that ask nothing of the user: dropped, so that what a stage prints is its own."""

from __future__ import annotations

import logging

# By the logger that makes them, how these remarks begin or what they contain. Everything else of it is shown.
REMARKS = {
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # nothing here is compiled for a GPU
    "torch.fx.experimental.symbolic_shapes": "Unable to find user code",  # the line of failure names it
    "torch._inductor.ir": "is missing a c-shim implementation",  # the package calls PyTorch's library, as it may
    "root": "pre-processing before quantization",  # that it is wise; the graph is optimised already
}


class _Drop(logging.Filter):
    def __init__(self, remark: str) -> None:
        super().__init__()
        self.remark = remark

    def filter(self, record: logging.LogRecord) -> bool:
        return self.remark not in record.getMessage()


def drop_remarks() -> None:
    """Drop the remarks in this process, whether their libraries are imported before or after."""
    for name, remark in REMARKS.items():
        logger = logging.getLogger(None if name == "root" else name)
        if not any(isinstance(found, _Drop) for found in logger.filters):
            logger.addFilter(_Drop(remark))
