"""The kinds of generators that are trained: their options, and the stages that train each kind."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from outlines.options import option
from train.methods.flow_stage import FlowGanStage, FlowOptions, FlowStage
from train.methods.gan_stage import FitStage, GanOptions, GanStage

GENERATOR_HELP = "kind of generator: gan, flow (flow matching), or flow-gan (a flow, then a GAN)"
GENERATOR_STAGES: dict[str, tuple[type[FitStage], ...]] = {
    "gan": (GanStage,), "flow": (FlowStage,), "flow-gan": (FlowStage, FlowGanStage)}
"""the stages that train each kind of generator (networks/generator.py); other kinds are only fitted"""


@dataclass(frozen=True)
class GeneratorOptions(GanOptions, FlowOptions):
    """The kind of generator, and the options of its training."""

    generator: str = option("gan", GENERATOR_HELP, choices=GENERATOR_STAGES)

    def unused(self) -> dict[str, str]:
        """Return the options that have no effect with this kind of generator, with the reason."""
        others: Any = {"gan": FlowOptions, "flow": GanOptions}.get(self.generator)
        names = {field.name for field in dataclasses.fields(others)} - {"ema_decay"} if others else set()
        names |= {"flow_weight"} if self.generator == "flow" else set()
        return dict.fromkeys(names, f"with generator {self.generator}")
