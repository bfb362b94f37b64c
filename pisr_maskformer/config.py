"""Every setting of PISR: name, default and meaning, written once.

Field `num_instances` of PISRSettings is the key MODEL.PISR.NUM_INSTANCES, and so on: `add_pisr_config`
gives a detectron2 config these keys, `settings_from` reads them back, and a program without any config
builds `PISRSettings(reweighting="implicit")` directly. Imports nothing, so the torch-only core can use it.

Sections, tables and equations are the paper's (CVPR 2022). Where the paper is silent the line says
**choice**.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Variant = TypeVar("Variant")


class SettingError(ValueError):
    """A setting has a value that PISR does not know; the message is one line and lists the valid ones."""


def choose(variants: Mapping[str, Variant], name: str, setting: str) -> Variant:
    """The variant called `name`; SettingError listing the valid names when there is none."""
    if name not in variants:
        raise SettingError(f"MODEL.PISR.{setting.upper()} is {name!r}; use one of: {', '.join(variants)}")
    return variants[name]


@dataclass(frozen=True)
class PISRSettings:
    """The keys under MODEL.PISR in lower case, with their defaults."""

    # --- Panoptic encodings E_pan, Sections 3.1 and 3.2 ---
    # N: how many queries, those with the highest thing probability, are kept as instances; E = C + N
    # encodings. **choice**: 50.
    num_instances: int = 50
    # Background suppression of the instance heatmaps, Section 3.2: "none"; "soft" multiplies by T / (T + U),
    # the pixel's probability of being a thing rather than stuff (**choice**: keeps gradients); "binary" by
    # T > U, the paper's thing mask.
    suppression: str = "soft"
    # Order of the N instance slots, **choice**: "query" (by index of the query, so that a slot keeps its
    # meaning for g_p and h' from image to image) or "score" (highest first, so that the output does not
    # depend on the order of the queries).
    slot_order: str = "query"
    # Multiply the semantic encoding of class c by max_q P_qc: an absent class gets a short one. **choice**.
    semantic_presence: bool = False
    # Multiply the encoding of an instance by its score, the highest probability of a thing class: a doubtful
    # instance gets a short one, and class logits get a gradient from it. **choice**.
    instance_presence: bool = True

    # --- Reweighting, Section 3.3 and Table B.1 ---
    # "explicit" (w = sigmoid(MLP(E_pan)), E~ = w * E_pan), "implicit" (E~ = MLP(E_pan)), "separate" (linear
    # layers of their own for E_sem and E_ins, then implicit), "none" (E~ = E_pan; control).
    reweighting: str = "explicit"
    # Hidden layers of the reweighting network, each D wide with ReLU: "# Hidden layers" of Table B.1.
    reweighting_layers: int = 2
    # w of "explicit": one number per encoding (False, **choice**), or one per encoding and channel (True).
    weight_per_channel: bool = False
    # Subtract from E~ its mean over the encodings of the image, empty slots left out; an encoding of weight 0
    # becomes minus the mean. Not in the paper; what it gains is in docs/evidence.md, 9.
    centre_encodings: bool = False

    # --- Panoptic relational attention, Section 3.4 and Table B.2 ---
    # "attention", or "constant": F_pan = M F + b with learned M and b that ignore the encodings. Not in the
    # paper: the control that a gain of PISR has to be measured against.
    relation: str = "attention"
    # The largest rank of the constant M, 0 for any: M of the encodings works in few directions.
    constant_rank: int = 0
    # f1 of F_sp = f1(g_s(E~), h(F)) and f2 of F_pan = f2(g_p(E~^T), h'(F_sp)): "matmul", "cosine" or "l2".
    f1: str = "matmul"
    f2: str = "matmul"

    # --- Feedback of F_pan into the second prediction, supplement D.3 ---
    # "pixel" (F' = F + O_f(norm(F_pan))), "query" (q' = q + O_q(norm(p))), or "both". **choice**. "none" is a
    # control: the second prediction repeats the first, and only the loss differs from the base network's.
    feedback: str = "both"

    # --- Two-stage loss, Equation 1 and Table B.3 ---
    # gamma of L = L_final + gamma * L_initial.
    initial_loss_weight: float = 0.5
    # What gamma multiplies: "all" losses of the base network, its earlier decoder layers included
    # (**choice**), or the "prediction" of the last decoder layer alone, earlier layers keeping weight 1.
    initial_loss_scope: str = "all"

    # --- Inference ---
    # The prediction that inference uses: "final", or "initial" to measure the first one of the same model.
    inference_stage: str = "final"

    def __post_init__(self) -> None:
        for name in ("num_instances", "reweighting_layers", "constant_rank", "initial_loss_weight"):
            if getattr(self, name) < 0:
                raise SettingError(
                    f"MODEL.PISR.{name.upper()} is {getattr(self, name)}; it must not be negative"
                )

    @property
    def supervises_earlier_layers(self) -> bool:
        """Whether the base network's earlier decoder layers have a loss; not with gamma = 0 on "all"."""
        return self.initial_loss_weight > 0 or self.initial_loss_scope != "all"


def add_pisr_config(cfg: Any) -> None:
    """Add MODEL.PISR with every key and default of PISRSettings to a detectron2 CfgNode, in place.

    And SOLVER.PISR_MULTIPLIER, the learning rate of PISR's own parameters relative to BASE_LR, which
    mask_former's optimiser gives to the modules called `pisr`.
    """
    node = type(cfg)()
    for field in fields(PISRSettings):
        setattr(node, field.name.upper(), field.default)
    cfg.MODEL.PISR = node
    cfg.SOLVER.PISR_MULTIPLIER = 1.0


def settings_from(cfg: Any) -> PISRSettings:
    """The settings under MODEL.PISR. SettingError when a number is negative; PISR checks the names."""
    return PISRSettings(**{name.lower(): value for name, value in cfg.MODEL.PISR.items()})
