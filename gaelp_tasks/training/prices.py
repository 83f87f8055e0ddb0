"""What the time of a training job costs, by the tariff. Pure; whole micro-units, rounded up."""

import math

from gaelp_tasks.models.money import MOST_MICRO, Charge, CostKind
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.tariff import Tariff, share_of

__all__ = ["bill", "bound_micro"]


def bill(tariff: Tariff, needs: Resources, seconds: float, *, preemptible: bool) -> list[Charge]:
    """The lines of a bill for so many seconds with these resources; what may be interrupted is cheaper."""
    ms = math.ceil(max(0.0, seconds) * 1000)
    cpu_micro = -(-ms * needs.cpu_milli * tariff.cpu_second_micro // 1_000_000)
    gpu_micro = -(-ms * needs.gpus * tariff.gpu_second_micro // 1000)
    lines = [Charge(CostKind.TRAINING_TIME, ms, min(cpu_micro, MOST_MICRO))]
    if needs.gpus:
        lines.append(Charge(CostKind.GPU_TIME, ms * needs.gpus, min(gpu_micro, MOST_MICRO)))
    whole = sum(line.amount_micro for line in lines)
    discount = share_of(whole, 100) - share_of(whole, 100 - tariff.preemptible_percent)
    if preemptible and discount:
        lines.append(Charge(CostKind.PREEMPTIBLE, ms, -discount))
    return lines


def bound_micro(tariff: Tariff, needs: Resources, timeout_s: float, *, preemptible: bool) -> int:
    """What a job costs that runs as long as it may."""
    lines = bill(tariff, needs, timeout_s, preemptible=preemptible)
    return min(sum(line.amount_micro for line in lines), MOST_MICRO)
