"""The recipe's sections and keys: every key typed, described and with a default that works."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from lora_dpo.recipe.types import Duration, Words, one_is_a_list

Loss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
_LOSSES_WITHOUT_F_DIVERGENCE = {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}
LOSSES_WITHOUT_A_MEAN_OVER_PAIRS = {"aot", "aot_unpaired", "sft"}
Strategy = Literal["auto", "single", "ddp", "zero2", "zero3", "zero3_offload", "fsdp2", "qlora"]
CANNOT_DIVIDE_4_BIT = {
    "zero3": "which cannot shard 4-bit weights",
    "zero3_offload": "which cannot shard 4-bit weights",
    "fsdp2": "which would leave the 4-bit weights whole on every process",
}
"""Strategies that divide weights; why they are nothing for 4-bit ones."""
SplitName = Literal["train", "validation", "test"]
Stage = Literal["sft", "dpo"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """What all sections share: unknown keys are refused, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool and get_origin(kind) is not Literal:
            raise ValueError(f"is not switched on or off, so it cannot be {str(value).lower()}")
        return value


class ModelSection(Section):
    """Which model is aligned, and how it is loaded."""

    name: str = Field(
        min_length=1,
        description="Hub id (org/name), local folder, GGUF file, or package:NAME/FILE for a file in a pip package.",
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit; null is the default branch.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights. auto: bfloat16 on a GPU that has it, float32 on a CPU."
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = Field(
        "auto", description="Attention kernel. auto never takes one that would drop the model's softcap."
    )
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="How turns become text: the tokenizer's chat template, or 'User: ... Assistant: ...' (plain). "
        "auto: the template if there is one.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository ships.")


class AdapterSection(Section):
    """What is trained: a LoRA adapter, one on 4-bit weights, or the whole model."""

    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="lora; qlora (frozen weights in 4-bit nf4 with double quantisation); full (no adapter)."
    )
    r: PositiveInt = Field(16, description="Rank of the update.")
    alpha: PositiveFloat = Field(32, description="Scale: the update is multiplied by alpha / r.")
    dropout: Fraction = Field(
        0.0, description="Dropout on the adapter's input; the base model's own dropout stays off."
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Layers that get an adapter: all-linear (all but the head), or a list of names. 'a|b' stands for "
        "whichever of them the model has.",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead of alpha / r (rsLoRA).")
    dora: bool = Field(False, description="Train the weights' magnitudes apart from their directions (DoRA).")
    init_from: str | None = Field(
        None,
        description="Begin with this adapter (folder, run folder or Hub id); it is the reference as well. null is a "
        "fresh adapter or, where sft.path is given, that of the recipe's own SFT run. auto goes on from the last "
        "finished run of this run.name, as NAME-2, NAME-3 and so on.",
    )
    init_mode: Literal["continue", "merge"] = Field(
        "continue",
        description="What becomes of init_from: it is trained further (continue), or put into the weights in memory "
        "while a fresh adapter is trained, and both are saved as one (merge).",
    )

    @field_validator("targets", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _one_target_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> AdapterSection:
        if self.method == "full" and (self.init_from is not None or self.dropout > 0):
            raise ValueError("method 'full' has no adapter, so init_from and dropout have no meaning")
        if isinstance(self.targets, list) and not self.targets:
            raise ValueError("targets is empty; name at least one layer, or use all-linear")
        return self

    @model_validator(mode="after")
    def _only_plain_lora_is_merged(self) -> AdapterSection:
        if self.init_mode == "merge" and self.method != "lora":
            why = "4-bit weights cannot take an adapter without loss" if self.method == "qlora" else "it has no adapter"
            raise ValueError(f"init_mode merge does not go with method '{self.method}': {why}; use init_mode continue")
        if self.init_mode == "merge" and self.dora:
            raise ValueError(
                "init_mode merge saves the sum of two updates, which dora's is not; use init_mode continue"
            )
        return self


class Source(Section):
    """One of several files or data sets."""

    path: str = Field(description="File, folder of files, Hub id, or bundled/misconceptions.")
    subset: str | None = Field(None, description="Hub configuration name, where the data set has several.")
    hub_split: str | None = Field(None, description="Hub split to read; null is the usual one of the data set.")
    weight: PositiveFloat = Field(
        1.0, description="How often each training pair is seen in an epoch; 0.5 takes a seeded half of them."
    )
    use: Literal["auto"] | SplitName = Field(
        "auto", description="auto: divided by data.split; otherwise all of it goes to this split."
    )


def _as_sources(path: str | list[str | Source]) -> list[Source]:
    entries = [path] if isinstance(path, str) else path
    return [Source(path=entry) if isinstance(entry, str) else entry for entry in entries]


class Columns(Section):
    """Which column is what, for files whose columns are not recognised."""

    prompt: str = Field(description="Column with the prompt: text or a list of messages.")
    chosen: str = Field(description="Column with the better answer.")
    rejected: str = Field(description="Column with the worse answer.")
    system: str | None = Field(None, description="Column with a system turn.")
    group: str | None = Field(None, description="Column that names the question; null groups by prompt.")


class SamplePairs(Section):
    """N pairs of each question, drawn with the split's seed."""

    sample: PositiveInt = Field(description="How many pairs a question at most.")


class Split(Section):
    """How questions are divided. A question is never on two sides."""

    test: Fraction = Field(
        0.2, description="Part of the questions held out for the report; without meaning where folds is set."
    )
    validation: Fraction = Field(0.1, description="Part of the questions for the evaluations during training.")
    seed: int = Field(0, ge=0, description="Which questions land where; keep it when runs are compared.")
    folds: int | None = Field(
        None,
        ge=2,
        description="Cross-validation: the questions are cut into this many equal parts, one of which is the test "
        "split, whatever test says. null is off.",
    )
    fold: PositiveInt | None = Field(None, description="Which of the folds is the test split, from 1 to folds.")
    like: str | None = Field(
        None,
        min_length=1,
        description="Folder of a run: a question that it had stays on the side where it was, and others fill up the "
        "parts. adapter.init_from=auto sets it.",
    )

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Split:
        if self.folds is None:
            part, held_out = self.test, f"test {self.test}"
        else:
            part, held_out = 1 / self.folds, f"one fold of {self.folds}"
        if part + self.validation >= 1.0:
            raise ValueError(f"{held_out} + validation {self.validation} leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _is_divided_in_one_way(self) -> Split:
        if self.folds is not None and self.like is not None:
            raise ValueError(f"folds {self.folds} and like {self.like} both divide the questions; set one to null")
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Split:
        if self.folds is None and self.fold is not None:
            raise ValueError(f"fold {self.fold} has no meaning without folds, the number of parts")
        if self.folds is not None and self.fold is None:
            raise ValueError(f"folds {self.folds} needs fold, which of them is the test split: 1 to {self.folds}")
        if self.folds is not None and self.fold is not None and self.fold > self.folds:
            raise ValueError(f"there is no fold {self.fold} of {self.folds}; folds are counted from 1")
        return self


class DataSection(Section):
    """Where the preferences come from, and how they are checked and divided."""

    path: str | list[str | Source] = Field(
        "bundled/misconceptions", description="File, folder, Hub id or bundled/misconceptions; or a list of them."
    )
    columns: Columns | None = Field(None, description="Explicit mapping of columns; null recognises the format.")
    pairs: Literal["best", "all"] | SamplePairs = Field(
        "best",
        description="Where a question has several answers: the best against the worst, all better x worse pairs, "
        "or {sample: N}.",
    )
    min_margin: float = Field(
        0.0, ge=0.0, description="For scored answers: smallest difference of scores that makes a pair."
    )
    split: Split = Field(default_factory=Split, description="How questions are divided.")
    limit: PositiveInt | None = Field(None, description="Use about this many pairs, drawn by question; null is all.")
    over_length: Literal["drop", "truncate_prompt", "error"] = Field(
        "drop", description="Pairs longer than dpo.max_length: drop, cut the prompt from the left, or stop."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be read: stop and name it, or skip and count it."
    )

    @field_validator("path")
    @classmethod
    def _names_a_source(cls, value: Any) -> Any:
        if not value:
            raise ValueError("names no data; give a file, a folder, a Hub id, or bundled/misconceptions")
        return value

    def sources(self) -> list[Source]:
        """Returns the sources as a list, whichever way they were written."""
        return _as_sources(self.path)


class DPOSection(Section):
    """The loss. Names and defaults are TRL's; docs/methods.md has the formulas."""

    loss: Annotated[
        list[Loss], Field(min_length=1), BeforeValidator(one_is_a_list, json_schema_input_type=Loss | list[Loss])
    ] = Field(default_factory=lambda: ["sigmoid"], description="One loss, or several that are added.")
    loss_weights: list[float] | None = Field(None, description="Weight of each loss; null is 1 for each.")
    beta: PositiveFloat = Field(0.1, description="How strongly the policy is held to the reference (tau for ipo).")
    max_length: PositiveInt = Field(1024, description="Longest prompt + answer, in tokens.")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=0.5, description="Assumed part of flipped preferences (robust, exo_pair, aot)."
    )
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="Divergence that holds the policy to the reference (f-DPO)."
    )
    f_alpha: float = Field(0.5, description="Coefficient of alpha_divergence.")
    ld_alpha: float | None = Field(
        None, ge=0.0, le=1.0, description="Weight of tokens beyond the shorter answer's length (LD-DPO); null is off."
    )
    use_weighting: bool = Field(False, description="Weight pairs by the policy's own probability (WPO).")
    discopop_tau: PositiveFloat = Field(0.05, description="Temperature of the discopop loss.")
    reference: Literal["cached", "live"] = Field(
        "cached", description="Reference log-probs: computed once before training and kept on disk, or at every step."
    )
    reference_model: Literal["init", "base"] = Field(
        "init",
        description="Which model is the reference: what the training begins with (init), adapter.init_from included, "
        "or the base model below it (base).",
    )

    @field_validator("reference", mode="before")
    @classmethod
    def _names_no_model(cls, value: Any) -> Any:
        if value in ("init", "base"):
            raise ValueError(f"says how the log-probs are held; which model is the reference: reference_model={value}")
        return value

    @model_validator(mode="after")
    def _losses_fit_together(self) -> DPOSection:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} entries for {len(self.loss)} losses")
        if "exo_pair" in self.loss and self.label_smoothing == 0.0:
            raise ValueError("exo_pair needs label_smoothing > 0; its paper recommends 0.001")
        if self.use_weighting and {"aot", "aot_unpaired"} & set(self.loss):
            raise ValueError("use_weighting cannot be combined with aot losses, which sort pairs before the loss")
        scored_apart = set(self.loss) & _LOSSES_WITHOUT_F_DIVERGENCE
        if self.f_divergence != "reverse_kl" and scored_apart:
            raise ValueError(f"f_divergence {self.f_divergence} has no meaning for {', '.join(sorted(scored_apart))}")
        return self


class AnswerColumns(Section):
    """Which column is what in the SFT stage's files."""

    prompt: str = Field(description="Column with the prompt: text or a list of messages.")
    answer: str = Field(description="Column with the answer to be learnt.")
    system: str | None = Field(None, description="Column with a system turn.")
    group: str | None = Field(None, description="Column that names the question; null groups by prompt.")


class SFTSection(Section):
    """Supervised fine-tuning before DPO, by `lora-dpo sft`. What has no key here is taken from the other sections."""

    path: str | list[str | Source] | None = Field(
        None,
        description="Instruction/response file, folder, Hub id or preference set (its chosen answers), or a list of "
        "them; null has no SFT stage.",
    )
    columns: AnswerColumns | None = Field(None, description="Explicit mapping of columns; null recognises the format.")
    limit: PositiveInt | None = Field(None, description="Use about this many examples, by question; null is all.")
    epochs: PositiveFloat = Field(1, description="Passes over the data.")
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; null is by epochs.")
    learning_rate: PositiveFloat = Field(2e-4, description="Peak learning rate.")
    max_length: PositiveInt = Field(1024, description="Longest example, in tokens.")
    trl: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of TRL's SFTConfig that no other key covers."
    )

    @field_validator("path")
    @classmethod
    def _names_a_source(cls, value: Any) -> Any:
        if value is not None and not value:
            raise ValueError("names no data; give a file, a folder or a Hub id, or null for no SFT stage")
        return value

    def sources(self) -> list[Source]:
        """Returns the sources as a list, whichever way they were written; none where there is no SFT stage."""
        return _as_sources([] if self.path is None else self.path)


class TrainSection(Section):
    """How the training runs: strategy, batch, schedule, evaluations, checkpoints."""

    strategy: Strategy = Field(
        "auto", description="Launch configuration, a file in accelerate_configs/; auto picks one for this machine."
    )
    learning_rate: PositiveFloat = Field(5e-6, description="Peak learning rate.")
    epochs: PositiveFloat = Field(1, description="Passes over the training pairs.")
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; null is by epochs.")
    global_batch_size: PositiveInt = Field(16, description="Pairs an optimizer step, over all processes.")
    trees: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute every distinct token of a micro-batch once: wherever the model can (auto), or stop where "
        "it cannot (on).",
    )
    tokens_per_micro_batch: PositiveInt | None = Field(
        None,
        description="Distinct tokens a forward pass and process; lower it when memory runs out. null is 4096, unless "
        "micro_batch_size is given, trees are off, or the loss is no mean over pairs.",
    )
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="Pairs a forward pass and process, instead of tokens_per_micro_batch. null, where that is null "
        "too, takes the largest up to 8 that divides.",
    )
    group_by_prompt: bool = Field(
        True, description="Pairs of one prompt stay next to each other, so that a micro-batch computes the prompt once."
    )
    weight: Literal["pair", "group"] = Field(
        "pair", description="What the loss is a mean over: pairs, or prompts however many pairs each has in a step."
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Course of the learning rate."
    )
    warmup: float = Field(0.1, ge=0.0, description="Warm-up: part of the steps (below 1), or steps (1 and above).")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Gradient clipping; 0 is off.")
    optimizer: str = Field("adamw_torch", description="Any name that Transformers' `optim` takes.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, about a third slower.")
    evals_per_epoch: int = Field(1, ge=0, description="Evaluations on the validation split an epoch; 0 is none.")
    eval_steps: PositiveInt | None = Field(None, description="Evaluate every N steps instead.")
    save_steps: PositiveInt | None = Field(None, description="Checkpoint every N steps; null is once an epoch.")
    keep_checkpoints: int | None = Field(
        2, ge=0, description="Newest checkpoints kept; 0 saves one only when the run is stopped, null keeps all."
    )
    max_hours: PositiveFloat | None = Field(
        None, description="Save a checkpoint and stop in time for this many hours since the start; null is no limit."
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="A loss that is no number: stop and name the pairs, or leave its micro-batch out of the gradient.",
    )
    hang_timeout: Duration = Field(
        default="00:10:00",
        validate_default=True,
        description="A micro-batch that takes longer ends the run, with the stack of every process.",
    )
    logging_steps: PositiveInt = Field(1, description="Log every N optimizer steps.")
    report_to: Words = Field(
        default_factory=list, description="Trackers besides the files: tensorboard, wandb, trackio."
    )
    trl: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of TRL's DPOConfig that no other key covers."
    )

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> TrainSection:
        if self.micro_batch_size is not None and self.tokens_per_micro_batch is not None:
            raise ValueError("micro_batch_size and tokens_per_micro_batch both say how a step is cut; set one to null")
        return self


class EvaluationSection(Section):
    """The report at the end: held-out data before and after."""

    samples: int = Field(32, ge=0, description="Held-out questions answered before and after, greedily and sampled.")
    max_new_tokens: PositiveInt = Field(64, description="Longest sample answer, in tokens.")
    batch_size: PositiveInt = Field(8, description="Sequences written at once; without trees, scored as well.")
    folds: int | None = Field(
        None,
        ge=2,
        description="Cross-validation: as many trainings, each with a fresh adapter and another part of the questions "
        "held out, and one report over all questions. null is one training.",
    )
    text: str | None = Field(
        None, description="File with unrelated text, whose perplexity must not suffer; null takes a bundled one."
    )
    judges: Words = Field(
        default_factory=list,
        description="Models that judge the answers: embedding models, reward models, truth judges; folders or Hub ids.",
    )


class RunSection(Section):
    """Where the results go."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run and of its folder: letters, digits, '.', '_' and '-', not '.' first.",
    )
    folder: str = Field("runs", description="Folder that holds the runs.")
    resume: str = Field(
        "auto",
        min_length=1,
        description="An unfinished run of this name goes on from its newest whole checkpoint (auto), is an error "
        "(never), or goes on from the checkpoint at this path, or the newest one of the run at this path.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything but the split: initialisation, order, dropout.")
    stage: Stage = Field("dpo", description="What the run trains; the commands set it, nobody else needs to.")


class SlurmSection(Section):
    """What a cluster job asks for, read by `lora-dpo submit`; what is null is the cluster profile's."""

    nodes: PositiveInt = Field(1, description="Number of nodes.")
    gpus_per_node: int | None = Field(
        None, ge=0, description="GPUs, and processes, a node; null is all that a node has by the profile, else 1."
    )
    processes_per_node: PositiveInt | None = Field(
        None, description="Processes a node where gpus_per_node is 0; null is 1. On GPUs it is one a GPU."
    )
    time: Duration = Field(default="04:00:00", validate_default=True, description="Wall time, HH:MM:SS or 90m, 4h, 2d.")
    partition: str | None = Field(None, min_length=1, description="Partition; null is the profile's or the default.")
    account: str | None = Field(None, min_length=1, description="Account; null is the profile's or the user's default.")
    qos: str | None = Field(
        None, min_length=1, description="Quality of service; null is the profile's or the user's default."
    )
    profile: str | None = Field(
        None, min_length=1, description="Cluster profile: a file, or a name; null is the user's own, else generic."
    )


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What a command line may say for a precision."""


class MergeSection(Section):
    """The model that `lora-dpo run` makes of base and adapter."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of its weights; auto leaves each tensor in the base's."
    )
    onto: Literal["auto", "full", "quantized"] = Field(
        "auto", description="For QLoRA: the base as it is, or as 4 bits leave it; auto measures which is nearer."
    )


class HubSection(Section):
    """Where and how the result is published, by the last stage of `lora-dpo run` and by `lora-dpo push`."""

    repo: str | None = Field(None, description="Repository, user/name; null publishes nothing.")
    private: bool = Field(True, description="Whether a new repository is private; one that is there stays as it is.")
    what: Literal["auto", "adapter", "merged"] = Field(
        "auto", description="What of the run is published. auto: the merged model if there is one, else the adapter."
    )
    tag: str | None = Field(None, min_length=1, description="Tag of the published version; null sets none.")
    base_model: str | None = Field(
        None,
        description="Hub id of the base, for the card, where model.name is a folder or a file; null is model.name.",
    )
    license: str | None = Field(
        None, description="The Hub's name of the licence, such as apache-2.0; null takes the base's, where it is known."
    )
    template: str | None = Field(None, description="Jinja template of the model card; null is the package's own.")


class Recipe(Section):
    """One YAML file that says what a run does, start to end."""

    model: ModelSection = Field(description="Which model is aligned.")
    adapter: AdapterSection = Field(default_factory=AdapterSection, description="What is trained.")
    data: DataSection = Field(default_factory=DataSection, description="The preferences.")
    dpo: DPOSection = Field(default_factory=DPOSection, description="The loss.")
    sft: SFTSection = Field(default_factory=SFTSection, description="Supervised fine-tuning before DPO.")
    train: TrainSection = Field(default_factory=TrainSection, description="How the training runs.")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="The report.")
    merge: MergeSection = Field(default_factory=MergeSection, description="The standalone model.")
    run: RunSection = Field(description="Where the results go.")
    slurm: SlurmSection = Field(default_factory=SlurmSection, description="The cluster job.")
    hub: HubSection = Field(default_factory=HubSection, description="Publication.")

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        if self.train.strategy == "qlora" and self.adapter.method != "qlora":
            raise ValueError("train.strategy qlora needs adapter.method qlora")
        strategy = self.train.strategy
        if self.adapter.method == "qlora" and strategy in CANNOT_DIVIDE_4_BIT:
            reason = CANNOT_DIVIDE_4_BIT[strategy]
            raise ValueError(f"adapter.method qlora cannot run under {strategy}, {reason}; use qlora")
        if self.evaluation.folds is not None and self.data.split.folds is not None:
            raise ValueError(
                f"evaluation.folds {self.evaluation.folds} trains every fold, and data.split.fold names one; set one "
                "of them to null"
            )
        if self.train.trees == "on" and self.adapter.dropout > 0:
            raise ValueError(
                f"train.trees on does not go with adapter.dropout {self.adapter.dropout}, which draws a mask for every "
                "repeated token; use train.trees auto, or adapter.dropout 0"
            )
        if self.adapter.init_mode == "merge" and self.dpo.reference_model == "base":
            raise ValueError(
                "dpo.reference_model base does not go with adapter.init_mode merge, which leaves no base in memory; "
                "use adapter.init_mode continue"
            )
        if self.dpo.reference == "cached" and self.train.trl.get("sync_ref_model"):
            raise ValueError("train.trl.sync_ref_model moves the reference, so it needs dpo.reference live")
        whole_batch = sorted(set(self.dpo.loss) & LOSSES_WITHOUT_A_MEAN_OVER_PAIRS)
        if whole_batch and (self.train.tokens_per_micro_batch is not None or self.train.weight == "group"):
            raise ValueError(
                f"dpo.loss {', '.join(whole_batch)} is no mean over pairs, so it needs micro-batches of equally many; "
                "use train.micro_batch_size and train.weight pair"
            )
        return self
