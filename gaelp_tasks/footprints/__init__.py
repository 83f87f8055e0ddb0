"""How much memory a model takes on a node, and how many invocations of it fit: decisions only, no I/O."""

from gaelp_tasks.footprints.memory_models import (
    KvCacheType,
    KvMemoryModel,
    MemoryModel,
    MemoryModelName,
    NaiveMemoryModel,
    Room,
    memory_model,
    needed_bytes,
    slots,
    unusual,
)
from gaelp_tasks.footprints.plans import OLLAMAS_CONTEXT, ModelPlan, NodePlan, in_words, plan_node
from gaelp_tasks.footprints.shapes import Layer, ModelShape, is_cut, read_shape

__all__ = [
    "OLLAMAS_CONTEXT",
    "KvCacheType",
    "KvMemoryModel",
    "Layer",
    "MemoryModel",
    "MemoryModelName",
    "ModelPlan",
    "ModelShape",
    "NaiveMemoryModel",
    "NodePlan",
    "Room",
    "in_words",
    "is_cut",
    "memory_model",
    "needed_bytes",
    "plan_node",
    "read_shape",
    "slots",
    "unusual",
]
