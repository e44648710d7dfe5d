"""What ZeRO-3 needs beside its configuration."""

from __future__ import annotations

from typing import Any


def forget_order_of_passes(*engines: Any) -> None:
    """Lets DeepSpeed find out anew in which order a forward pass uses the weights.

    ZeRO-3 fetches weights ahead in the order of the passes before, and may stop with an error where a pass of another
    kind, as from training to scoring to generation, begins like them.

    Args:
        engines: DeepSpeed engines; anything else is left alone.
    """
    for engine in engines:
        optimizer = getattr(engine, "optimizer", None)
        offload = getattr(optimizer, "parameter_offload", optimizer)  # an engine without training has it in its place
        if hasattr(offload, "get_param_coordinator"):
            coordinator = offload.get_param_coordinator()
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()
