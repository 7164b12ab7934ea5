"""A loaded model's shards as plain modules.

`transformers` loads each rank's part as DTensors, with hooks around the modules that hold them. Both go here: what is
left are ordinary modules of this rank's sizes, which can be fused and compiled, and two kinds that talk to other ranks.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Shard
from transformers import PreTrainedModel

from dflash_core.errors import UnsupportedModel
from dflash_core.parallel.plan import KvSplit
from dflash_core.parallel.ranks import Ranks


class SummedOverRanks(nn.Module):
    """A module of which every rank computes a part of the sum."""

    def __init__(self, partial: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.partial = partial
        self.group = group

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the module split. The partial result must be a tensor of its own: it is summed in place."""
        output: Tensor = self.partial(*inputs)
        dist.all_reduce(output, group=self.group)
        return output


class ShardedEmbedding(nn.Module):
    """An embedding of which every rank has the ids `first_id` …; the others' rows count as zeros."""

    def __init__(self, partial: nn.Embedding, first_id: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.partial = partial
        self.first_id = first_id
        self.group = group

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64 `[...]` to `[..., hidden]`."""
        places = token_ids - self.first_id
        is_here = (places >= 0) & (places < self.partial.num_embeddings)
        rows = self.partial(torch.where(is_here, places, 0))
        rows = torch.where(is_here.unsqueeze(-1), rows, 0.0)
        dist.all_reduce(rows, group=self.group)
        return rows


def make_local(model: PreTrainedModel, ranks: Ranks, kv: KvSplit) -> None:
    """Replaces, in place, what `transformers` split. Raises `UnsupportedModel` for a split of another kind."""
    own: dict[nn.Parameter, nn.Parameter] = {}  # a tied parameter stays one
    for name, module in list(model.named_modules()):
        if vars(module).pop("_is_hooked", False):
            vars(module).pop("forward", None)
        placements = {
            key: parameter.placements[0]
            for key, parameter in module._parameters.items()
            if isinstance(parameter, DTensor)
        }
        for key in placements:
            given = cast(nn.Parameter, module._parameters[key])
            if given not in own:
                local = cast(DTensor, given).to_local().detach().contiguous()
                own[given] = nn.Parameter(local, requires_grad=False)
            module._parameters[key] = own[given]
        if placements:
            _replace(model, name, module, placements, ranks)
        elif kv.is_replicated and name.endswith((".k_proj", ".v_proj")):
            _keep_one_head(cast(nn.Linear, module), kv, ranks.tp_rank)


def _replace(model: nn.Module, name: str, module: nn.Module, placements: dict[str, Placement], ranks: Ranks) -> None:
    group = ranks.passes
    if isinstance(module, nn.Embedding):
        num_ids = module.num_embeddings
        module.num_embeddings = len(module.weight)
        module.padding_idx = None  # of training alone, and perhaps not here
        first_id = ranks.tp_rank * -(-num_ids // ranks.tp_size)
        model.set_submodule(name, ShardedEmbedding(module, first_id, group))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
        if placements["weight"] in (Shard(1), Shard(-1)):
            if not ranks.leads:
                module.bias = None  # type: ignore[assignment]  # it enters the sum once
            model.set_submodule(name, SummedOverRanks(module, group))
    elif {"gate_up_proj", "down_proj"} <= placements.keys():  # experts
        model.set_submodule(name, SummedOverRanks(module, group))
    else:
        raise UnsupportedModel(f"{name}, a {type(module).__name__}, is split in a way that is not implemented")


def _keep_one_head(projection: nn.Linear, kv: KvSplit, tp_rank: int) -> None:
    for key, parameter in list(projection.named_parameters()):
        heads = parameter.detach().view(kv.num_kv_heads, -1, *parameter.shape[1:])
        own = heads[kv.head_of(tp_rank)].clone()
        projection._parameters[key] = nn.Parameter(own, requires_grad=False)
    projection.out_features = len(projection.weight)
