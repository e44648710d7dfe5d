"""What each loss must be before the first update: known where policy and reference are the same, and not where not."""

from __future__ import annotations

import math

import torch

from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import DPOSection

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_SAME = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-3}
"""How near to the zero-margin value no loss comes by chance where policy and reference differ."""


def zero_margin_loss(dpo: DPOSection) -> float | None:
    r"""Returns the loss at equal log-probs of policy and reference, or None where it depends on the data.

    All log-ratios are 0 there, and so are the scores of every f-divergence. With \sigma(0) = 1/2 the losses have
    the closed forms below (Rafailov et al. 2023, eq. 7; Azar et al. 2023, eq. 17, for ipo; Ji et al. 2024,
    eq. 16, for exo_pair; Wu et al. 2024, eq. 4.7, for sppo_hard).

    Args:
        dpo: The recipe's loss section.
    """
    if "sft" in dpo.loss or dpo.use_weighting:
        return None
    weights = dpo.loss_weights or [1.0] * len(dpo.loss)
    return sum(weight * _single(loss, dpo) for loss, weight in zip(dpo.loss, weights, strict=True))


def _single(loss: str, dpo: DPOSection) -> float:
    ln2 = math.log(2)
    if loss in {"sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired"}:
        return ln2  # label smoothing mixes two terms that are equal at zero
    if loss in {"hinge", "apo_zero", "apo_down"}:
        return 1.0
    if loss in {"nca_pair", "bco_pair"}:
        return 2 * ln2
    if loss == "ipo":
        return 1 / (4 * dpo.beta**2)
    if loss == "sppo_hard":
        return 1 / (2 * dpo.beta**2)
    if loss == "discopop":
        return (ln2 + 1) / 2
    if loss == "exo_pair":
        epsilon = dpo.label_smoothing
        return -ln2 - 0.5 * (math.log1p(-epsilon) + math.log(epsilon))
    raise ValueError(f"no zero-margin value is known for the loss {loss!r}")


def check_first_loss(loss: float, dpo: DPOSection, dtype: torch.dtype) -> None:
    """Stops a run whose first loss shows that policy and reference differ.

    Args:
        loss: Mean loss of the first micro-batch, before any update.
        dpo: The recipe's loss section.
        dtype: Precision of the forward pass, which sets the tolerance.

    Raises:
        UserError: The loss is not the zero-margin value.
    """
    expected = zero_margin_loss(dpo)
    if expected is None:
        return
    tolerance = _TOLERANCE[dtype] * max(1.0, abs(expected))
    if not abs(loss - expected) <= tolerance:  # true for NaN as well
        raise UserError(
            f"The first loss is {loss:.6f}, but {' + '.join(dpo.loss)} starts at {expected:.6f} (+-{tolerance:.1g}).",
            why="Before the first update policy and reference must agree, so one of them is not what it should be: "
            "a wrong reference, an active dropout, reference log-probs of another model, or broken numerics.",
            fix="Nothing was trained. Check model, adapter.init_from and train.trl; NaN points at model.dtype.",
        )


def check_first_loss_is_apart(loss: float, dpo: DPOSection, dtype: torch.dtype, init_from: str) -> None:
    """Stops a run whose first loss shows that policy and reference are one, though the reference is to be the base.

    With `dpo.reference_model: base` the policy begins with an adapter that the reference lacks. The first loss then
    depends on the data; all that is known of it is that it is not the zero-margin value.

    Args:
        loss: Mean loss of the first micro-batch, before any update.
        dpo: The recipe's loss section.
        dtype: Precision of the forward pass.
        init_from: The adapter.

    Raises:
        UserError: The loss is the zero-margin value, or no number.
    """
    same = zero_margin_loss(dpo)
    if not math.isfinite(loss):
        raise UserError(f"The first loss is {loss}.", fix="Nothing was trained. NaN points at model.dtype.")
    if same is None or abs(loss - same) > _SAME[dtype] * max(1.0, abs(same)):
        return
    raise UserError(
        f"The first loss is {loss:.6f}, so policy and reference are the same; but dpo.reference_model is base.",
        why=f"The policy begins with {init_from}, which the base lacks. So that adapter changes nothing, was not "
        "taken up, or the reference has it too.",
        fix="Nothing was trained. Look at adapter.init_from; an adapter that was never trained is the base itself.",
    )
