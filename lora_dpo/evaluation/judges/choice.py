"""Which judge a model is, by its kind."""

from __future__ import annotations

from lora_dpo.errors import UserError
from lora_dpo.evaluation.judges.base import Judge
from lora_dpo.evaluation.judges.embedding import EmbeddingJudge, is_encoder
from lora_dpo.evaluation.judges.loading import architecture_of
from lora_dpo.evaluation.judges.reward import RewardJudge, is_reward_model
from lora_dpo.evaluation.judges.truth import TruthJudge, is_language_model
from lora_dpo.evaluation.work import Work


def load_judge(work: Work, name: str, *, batch_size: int) -> Judge:
    """Loads the judge that a model is: an encoder, a reward model, or a language model trained to judge truth.

    Args:
        work: How the forward passes are carried out.
        name: Hub id or folder.
        batch_size: Answers judged at once.

    Raises:
        UserError: The model cannot be loaded, or is of none of these kinds.
    """
    architecture = architecture_of(name)
    if is_reward_model(architecture):
        return RewardJudge(work, name, batch_size=batch_size)
    if is_language_model(architecture):
        return TruthJudge(work, name, batch_size=batch_size)
    if is_encoder(architecture):
        return EmbeddingJudge(work, name, batch_size=batch_size)
    raise UserError(
        f"{name} is a {architecture}, which cannot judge answers.",
        fix="Take an encoder of sentences, a reward model (sequence classifier with one label), or a truth judge.",
    )
