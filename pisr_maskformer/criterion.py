"""Two-stage loss, Equation 1: L = L_final + gamma * L_initial, around any criterion.

Each stage is judged by the host's own criterion, with a matching of its own. Loss names tell the stage:

    loss_ce      of the second prediction       -> loss_ce_final
    loss_ce      of the first prediction        -> loss_ce_initial
    loss_ce_3    of the first, decoder layer 3  -> loss_ce_initial_3

Here losses and weights are apart, and gamma is in the weights. A trainer's log shows weighted losses: what it
calls loss_…_initial already contains gamma, so that all of them add up to total_loss.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pisr_maskformer.config import choose

LAYER_SUFFIX = re.compile(r"_\d+$")  # of an earlier decoder layer's loss

# Name -> (gamma, whether the loss is an earlier layer's) -> factor of a loss of the base network.
INITIAL_LOSS_SCOPE: dict[str, Callable[[float, bool], float]] = {
    "all": lambda gamma, earlier: gamma,
    "prediction": lambda gamma, earlier: 1.0 if earlier else gamma,
}


def stage_name(name: str, stage: str) -> str:
    """`name` with the stage put before the layer's number: loss_ce_3 -> loss_ce_initial_3."""
    layer = LAYER_SUFFIX.search(name)
    start = layer.start() if layer else len(name)
    return f"{name[:start]}_{stage}{name[start:]}"


class TwoStageCriterion:
    """Names, weights and values of both stages' losses.

    No module: the criterion it works with keeps its buffers, and its checkpoint entries, where they are.

    Args:
        weights: the criterion's weight for each of its loss names; earlier layers' end in a number.
        initial_loss_weight: gamma >= 0. With 0, the losses it multiplies are left out.
        initial_loss_scope: what gamma multiplies, "all" or "prediction".
    """

    def __init__(
        self, weights: Mapping[str, float], *, initial_loss_weight: float, initial_loss_scope: str
    ) -> None:
        self.gamma = initial_loss_weight
        self.factor = choose(INITIAL_LOSS_SCOPE, initial_loss_scope, "initial_loss_scope")
        self.weight_dict = {
            stage_name(name, "final"): weight for name, weight in weights.items() if not self.is_earlier(name)
        }
        for name, weight in weights.items():
            if self.initial_factor(name) > 0:
                self.weight_dict[stage_name(name, "initial")] = weight * self.initial_factor(name)
        self.uses_initial = any(self.initial_factor(name) > 0 for name in weights)

    @staticmethod
    def is_earlier(name: str) -> bool:
        """Whether the loss called `name` is of an earlier decoder layer."""
        return LAYER_SUFFIX.search(name) is not None

    def initial_factor(self, name: str) -> float:
        """What the base network's loss `name` is multiplied by, besides its own weight."""
        return self.factor(self.gamma, self.is_earlier(name))

    def __call__(
        self,
        criterion: Callable[[Any, Any], Mapping[str, Tensor]],
        outputs: Mapping[str, Any],
        targets: Any,
    ) -> dict[str, Tensor]:
        """Unweighted losses of both stages, by a call of `criterion` for each.

        `outputs` is what `criterion` takes for the final prediction, and holds the same for the first one
        under "initial". Raises ValueError when the losses are not the ones that have a weight.
        """
        losses = {stage_name(name, "final"): loss for name, loss in criterion(outputs, targets).items()}
        if self.uses_initial:
            for name, loss in criterion(outputs["initial"], targets).items():
                if self.initial_factor(name) > 0:
                    losses[stage_name(name, "initial")] = loss
        return self.checked(losses)

    def together(
        self,
        criterion: Callable[[dict[str, Any], Any], dict[str, Tensor]],
        final: Mapping[str, Any],
        initial: Mapping[str, Any],
        targets: Any,
    ) -> dict[str, Tensor]:
        """The same by one call, of a criterion that takes any number of predictions and adds to their losses'
        names what it knows each prediction by.

        `final`, `initial`: each stage's predictions, the last layer's as "", earlier ones' as "_0", …. Those
        that gamma leaves without a loss are left out.
        """
        wanted = {stage_name(layer, "final"): prediction for layer, prediction in final.items()}
        for layer, prediction in initial.items():
            if self.initial_factor(layer) > 0:
                wanted[stage_name(layer, "initial")] = prediction
        return self.checked(criterion(wanted, targets))

    def checked(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """`losses`, each of which has a weight, and each weight a loss; else ValueError."""
        if losses.keys() != self.weight_dict.keys():
            without_weight = sorted(losses.keys() - self.weight_dict.keys())
            without_loss = sorted(self.weight_dict.keys() - losses.keys())
            raise ValueError(
                f"losses without a weight: {without_weight}; weights without a loss: {without_loss}"
            )
        return losses
