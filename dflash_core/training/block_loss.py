"""The drafter's loss on a batch of blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dflash_core.models.drafter import DFlashDrafter


def target_states(target: PreTrainedModel, token_ids: Tensor, layer_ids: tuple[int, ...]) -> Tensor:
    """As the target computes them: `[batch, length, (num_captured + 1) · hidden]`."""
    output = target(input_ids=token_ids, output_hidden_states=True, use_cache=False, logits_to_keep=1)
    return torch.cat([*(output.hidden_states[i + 1] for i in layer_ids), output.hidden_states[-1]], -1)


class BlockLoss(nn.Module):
    """Target and drafter together: the drafter's loss on a batch. The target is frozen."""

    def __init__(self, target: PreTrainedModel, drafter: DFlashDrafter) -> None:
        super().__init__()
        self.target = target.requires_grad_(False).eval()
        self.drafter = drafter

    @property
    def device(self) -> torch.device:
        return self.drafter.fc.weight.device

    def forward(
        self, token_ids: Tensor, anchors: Tensor, is_greedy: Tensor, raw_features: Tensor, final_hidden: Tensor
    ) -> Tensor:
        """The mean loss of a `Batch`'s predicted slots, weighted by `round_weights`."""
        logits = self.draft_logits(token_ids, anchors, raw_features)  # [batch, anchors, depth, vocab]
        positions, inside = self.predicted_positions(anchors, token_ids.shape[1])
        rows = torch.arange(len(token_ids), device=token_ids.device)[:, None, None]
        written = F.cross_entropy(logits.flatten(0, 2), token_ids[rows, positions].flatten(), reduction="none")
        with torch.no_grad():
            target_logs = self.target.get_output_embeddings()(final_hidden).log_softmax(-1)
            entropies = -(target_logs.exp() * target_logs).sum(-1)[rows, positions - 1]
            target_probs = target_logs.exp()[rows, positions - 1]
        expected = torch.logsumexp(logits, -1) - (target_probs * logits).sum(-1)
        of_greedy = is_greedy[:, None, None]
        loss = torch.where(of_greedy, written.view_as(expected), expected)
        weights = inside * round_weights((loss - torch.where(of_greedy, 0.0, entropies)).detach())
        return (loss * weights).sum() / weights.sum()

    def draft_logits(self, token_ids: Tensor, anchors: Tensor, raw_features: Tensor) -> Tensor:
        """`[batch, num_anchors, depth, vocab]` of the blocks at the anchors."""
        config = self.drafter.config
        batch, num_anchors = anchors.shape
        length, size = token_ids.shape[1], config.draft_block_size
        context = self.drafter.project_context(raw_features)  # [batch, length, hidden]
        context_kv = self.drafter.context_kv(context, torch.arange(length, device=token_ids.device)[None])
        slots = torch.arange(size, device=token_ids.device)
        positions = (anchors[..., None] + slots).flatten(1)  # [batch, rows]
        block = torch.full((batch, num_anchors, size), config.mask_token_id, device=token_ids.device)
        block[..., 0] = token_ids.gather(1, anchors)
        visible = self._visible(anchors, length)

        def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            context_key, context_value = context_kv[layer_idx]
            keys = torch.cat([context_key, key], 1).transpose(1, 2)
            values = torch.cat([context_value, value], 1).transpose(1, 2)
            output = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True
            )
            return output.transpose(1, 2)

        embeds = self.target.get_input_embeddings()(block.flatten(1))
        hidden = self.drafter(embeds, positions, attend).view(batch, num_anchors, size, -1)
        logits: Tensor = self.target.get_output_embeddings()(hidden[:, :, 1:])
        return logits.float()  # whatever the products are computed in: a bf16 logit is too coarse for a loss

    def predicted_positions(self, anchors: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Positions `[batch, anchors, depth]` that slots 1, 2, … predict, and which lie inside the sequence."""
        depth = torch.arange(1, self.drafter.config.draft_block_size, device=anchors.device)
        positions = anchors[..., None] + depth
        return positions.clamp(max=length - 1), positions < length

    def _visible(self, anchors: Tensor, length: int) -> Tensor:
        """`[batch, 1, rows, length + rows]`: the context strictly before the anchor, and the row's own block."""
        size = self.drafter.config.draft_block_size
        of_row = anchors.repeat_interleave(size, 1)  # [batch, rows]
        context = torch.arange(length, device=anchors.device)[None, None] < of_row[..., None]
        block = torch.arange(of_row.shape[1], device=anchors.device) // size
        same = (block[:, None] == block[None]).expand(len(anchors), -1, -1)
        return torch.cat([context, same], -1)[:, None]


def round_weights(divergences: Tensor) -> Tensor:
    """How much each predicted slot `[..., depth]` matters for the number of rounds that a text takes.

    `divergences` are nats between what the target does at a slot and what the drafter says there. A slot counts as
    far as its round gets there, and a root as often as decoding meets it: a round that commits many tokens skips the
    roots after its own, so that a root is met about once in its acceptance length.
    """
    # The square root: a tree reaches a slot more often than its likeliest path does.
    reached = F.pad((-divergences / 2).exp().cumprod(-1)[..., :-1], (1, 0), value=1.0)
    acceptance_length = 1 + (-divergences).exp().cumprod(-1).sum(-1, keepdim=True)
    return reached / acceptance_length
