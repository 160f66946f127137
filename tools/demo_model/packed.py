"""Many questions on one image in one pass: the image block is computed once, questions see it and themselves.

The arithmetic is the checkpoint's own (its modules are called one by one); only the attention is laid out
anew.
Dropping visual tokens is a mask here, with the positions of the kept ones closed up, which gives the same
numbers as taking the tokens out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import rotate_half

from foveate.tools.demo_model.scenes import Question, Scene
from foveate.tools.demo_model.tokenizer import BEFORE_IMAGE, EOS, prompt_after_image

ANSWER_TOKENS = 3  # the longest answer is two tokens and the end
IGNORED = -100
CAPTION_REQUEST = "What is here?"
# From how much the question's text attends to each visual token `[b, n]`, which ones survive (bool `[b, n]`).
Choice = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PackedQuestions:
    """Questions of a batch of images, `ids [b, q, t]`, and where which answer tokens are due, `[b, q, a]`."""

    prefix: Tensor
    ids: Tensor
    rows: Tensor
    targets: Tensor

    def unpack(self) -> PackedQuestions:
        """The same questions with one image each: `b * q` images with one question."""
        parts = (part.flatten(0, 1).unsqueeze(1) for part in (self.ids, self.rows, self.targets))
        return PackedQuestions(self.prefix, *parts)


@functools.lru_cache(maxsize=20000)
def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def pack(tokenizer: PreTrainedTokenizerFast, asked: Sequence[Sequence[Question]]) -> PackedQuestions:
    """Tokenise; every image must have the same number of questions."""
    prompts = [[_encode(tokenizer, prompt_after_image(q.text)) for q in image] for image in asked]
    answers = [[_encode(tokenizer, f" {q.answer}{EOS}") for q in image] for image in asked]
    length = max(
        len(p) + len(a) - 1
        for ps, qs in zip(prompts, answers, strict=True)
        for p, a in zip(ps, qs, strict=True)
    )
    shape = (len(asked), len(asked[0]))
    ids = torch.zeros(*shape, length, dtype=torch.long)
    rows = torch.zeros(*shape, ANSWER_TOKENS, dtype=torch.long)
    targets = torch.full((*shape, ANSWER_TOKENS), IGNORED)
    for b in range(shape[0]):
        for q in range(shape[1]):
            prompt, answer = prompts[b][q], answers[b][q]
            text = prompt + answer[:-1]
            ids[b, q, : len(text)] = torch.tensor(text)
            rows[b, q] = len(prompt) - 1
            rows[b, q, : len(answer)] += torch.arange(len(answer))
            targets[b, q, : len(answer)] = torch.tensor(answer)
    return PackedQuestions(torch.tensor(_encode(tokenizer, BEFORE_IMAGE)), ids, rows, targets)


def pack_captions(
    tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene], variants: int, hops: int = 2
) -> PackedQuestions:
    """Captions instead of questions, `variants` per image, with the graded tokens as answers."""
    prompt = _encode(tokenizer, prompt_after_image(CAPTION_REQUEST))
    ids, rows, targets = [], [], []
    for scene in scenes:
        for variant in range(variants):
            text, due = list(prompt), []
            for piece, graded in scene.describe(variant, hops=hops):
                tokens = _encode(tokenizer, piece)
                due += [(len(text) + i - 1, token) for i, token in enumerate(tokens) if graded]
                text += tokens
            ids.append(torch.tensor(text))
            rows.append(torch.tensor([row for row, _ in due]))
            targets.append(torch.tensor([token for _, token in due]))
    padded = (pad_sequence(part, True, value) for part, value in ((ids, 0), (rows, 0), (targets, IGNORED)))
    ready = [part.unflatten(0, (len(scenes), variants)) for part in padded]
    return PackedQuestions(torch.tensor(_encode(tokenizer, BEFORE_IMAGE)), *ready)


class _Layout:
    """Masks and rotations shared by all layers: `s` rows of the image block, `t` rows of each question."""

    def __init__(
        self, model: nn.Module, questions: PackedQuestions, valid: Tensor, positions: Tensor
    ) -> None:
        batch, self.asked, self.length = questions.ids.shape
        self.batch, self.shared = batch, valid.shape[1]
        text = positions.amax(1, keepdim=True) + 1 + torch.arange(self.length)
        rotary = model.model.language_model.rotary_emb
        self.shared_rotation = rotary(torch.zeros(()), positions)  # cos and sin [b, s, d]
        self.text_rotation = rotary(torch.zeros(()), text)  # [b, t, d]
        self.causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        self.set_valid(valid)

    def set_valid(self, valid: Tensor) -> None:
        """Say which rows of the image block can be attended to, bool `[b, s]`."""
        self.valid = valid
        causal = torch.ones(self.shared, self.shared, dtype=torch.bool).tril()
        self.shared_mask = (causal & valid[:, None, :]) | torch.eye(self.shared, dtype=torch.bool)


def answer_logits(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    questions: PackedQuestions,
    keep: Tensor | None = None,
    positions: Tensor | None = None,
    cut: tuple[int, Choice] | None = None,
) -> Tensor:
    """Logits of the answer tokens, `[b, q, a, vocabulary]`; see `decode`."""
    return decode(model, features, questions, keep, positions, cut)[0]


def decode(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    questions: PackedQuestions,
    keep: Tensor | None = None,
    positions: Tensor | None = None,
    cut: tuple[int, Choice] | None = None,
    middle: int = 1,
) -> tuple[Tensor, Tensor]:
    """Logits of the answer tokens, `[b, q, a, vocabulary]`, from visual features `[b, n, c]`.

    The second result is the state of every prompt's last row after layer `middle`, `[b, q, w]`.

    `keep` (bool `[b, n]`) drops visual tokens before the decoder; `positions` (int `[b, n]`) overrides where
    the visual tokens stand, counted from the first; `cut` drops visual tokens after a decoder layer (counted
    from 1) and needs one question per image.
    """
    language = model.model.language_model
    batch, count = features.shape[:2]
    before = len(questions.prefix)
    prefix = language.embed_tokens(questions.prefix).expand(batch, -1, -1)
    shared = torch.cat([prefix, model.model.multi_modal_projector(features)], 1)
    keep = torch.ones(batch, count, dtype=torch.bool) if keep is None else keep
    valid = F.pad(keep, (before, 0), value=True)
    places = valid.cumsum(1) - 1
    if positions is not None:
        places = torch.cat([torch.arange(before).expand(batch, -1), before + positions], 1)
    layout = _Layout(model, questions, valid, places)
    text = language.embed_tokens(questions.ids)
    for index, layer in enumerate(language.layers[:-1]):
        watched = cut is not None and cut[0] == index + 1
        shared, text, attention = _layer(layer, shared, text, layout, watched)
        if index + 1 == middle:
            last = questions.rows[:, :, :1, None].expand(-1, -1, -1, text.shape[-1])
            state = text.gather(2, last).squeeze(2)
        if cut is not None and attention is not None:
            relevance = _relevance(attention, questions, before)
            layout.set_valid(F.pad(cut[1](relevance) & keep, (before, 0), value=True))
    text = _last_layer(language.layers[-1], shared, text, questions.rows, layout)
    return model.lm_head(language.norm(text)), state


@torch.no_grad()
def decode_exits(
    model: LlavaForConditionalGeneration, features: Tensor, questions: PackedQuestions
) -> tuple[list[Tensor], list[Tensor]]:
    """What the decoder says when the image leaves early, from visual features `[b, n, c]`.

    States of the questions' rows behind each layer but the last, `[b, q, t, w]`, and the logits of the answer
    tokens, `[b, q, a, vocabulary]`, when all visual tokens leave behind that layer; one more, at the end, if
    they stay.
    """
    language = model.model.language_model
    batch, count = features.shape[:2]
    before = len(questions.prefix)
    prefix = language.embed_tokens(questions.prefix).expand(batch, -1, -1)
    shared = torch.cat([prefix, model.model.multi_modal_projector(features)], 1)
    everything = torch.ones(batch, before + count, dtype=torch.bool)
    text_only = F.pad(torch.zeros(batch, count, dtype=torch.bool), (before, 0), value=True)
    layout = _Layout(model, questions, everything, everything.cumsum(1) - 1)
    text = language.embed_tokens(questions.ids)
    layers = language.layers
    states, logits = [], []

    def finish(shared: Tensor, text: Tensor, first: int) -> Tensor:
        for layer in layers[first:-1]:
            shared, text, _ = _layer(layer, shared, text, layout, watched=False)
        text = _last_layer(layers[-1], shared, text, questions.rows, layout)
        return model.lm_head(language.norm(text))

    for index, layer in enumerate(layers[:-1], start=1):
        shared, text, _ = _layer(layer, shared, text, layout, watched=False)
        states.append(text)
        layout.set_valid(text_only)
        logits.append(finish(shared, text, index))
        layout.set_valid(everything)
    return states, [*logits, finish(shared, text, len(layers) - 1)]


@torch.no_grad()
def looked_at(model: LlavaForConditionalGeneration, features: Tensor, questions: PackedQuestions) -> Tensor:
    """How much each question looks at each of the visual features `[b, n, c]`, `[b, q, n]`.

    The sum, over all layers but the last, of the largest attention (mean of heads) from a row of the prompt.
    """
    language = model.model.language_model
    before = len(questions.prefix)
    prefix = language.embed_tokens(questions.prefix).expand(len(features), -1, -1)
    shared = torch.cat([prefix, model.model.multi_modal_projector(features)], 1)
    valid = torch.ones(shared.shape[:2], dtype=torch.bool)
    layout = _Layout(model, questions, valid, valid.cumsum(1) - 1)
    text = language.embed_tokens(questions.ids)
    asks = torch.arange(text.shape[2]) <= questions.rows[:, :, :1]  # [b, q, t]
    total = torch.zeros(())
    for layer in language.layers[:-1]:
        shared, text, attention = _layer(layer, shared, text, layout, watched=True)
        assert attention is not None
        total = total + (attention.mean(2)[..., before:] * asks[..., None]).amax(2)
    return total


def _relevance(attention: Tensor, questions: PackedQuestions, before: int) -> Tensor:
    """Mean attention (`[b, 1, h, t, s]`) of the prompt after the image to each visual token, `[b, n]`."""
    asked = torch.arange(attention.shape[3]) <= questions.rows[:, :, :1]  # [b, 1, t]
    weight = asked[:, 0, :, None] / asked[:, 0].sum(1)[:, None, None]
    return (attention[:, 0].mean(1) * weight).sum(1)[:, before:]


def _heads(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[rows, h, d]`, keys and values `[rows, g, d]` of `[rows, width]`."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    parts = (attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed))
    return tuple(part.unflatten(-1, (-1, attention.head_dim)) for part in parts)  # type: ignore[return-value]


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of `[b, ..., rows, heads, d]` with cos and sin `[b, ..., rows, d]`."""
    cos, sin = (part.unsqueeze(-2) for part in rotation)
    return x * cos + rotate_half(x) * sin


def _layer(
    layer: nn.Module, shared: Tensor, text: Tensor, layout: _Layout, watched: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One decoder layer on image block `[b, s, w]` and questions `[b, q, t, w]`; attention if `watched`."""
    batch, asked, length = layout.batch, layout.asked, layout.length
    edge = batch * layout.shared
    hidden = torch.cat([shared.flatten(0, 1), text.flatten(0, 2)])
    query, key, value = _heads(layer, hidden)
    split = lambda x: (x[:edge].unflatten(0, (batch, -1)), x[edge:].unflatten(0, (batch, asked, length)))  # noqa: E731
    (shared_q, text_q), (shared_k, text_k), (shared_v, text_v) = split(query), split(key), split(value)
    shared_q, shared_k = _rotate(shared_q, layout.shared_rotation), _rotate(shared_k, layout.shared_rotation)
    rotation = tuple(part.unsqueeze(1) for part in layout.text_rotation)
    text_q, text_k = _rotate(text_q, rotation), _rotate(text_k, rotation)
    mixed = F.scaled_dot_product_attention(
        shared_q.transpose(1, 2),
        shared_k.transpose(1, 2),
        shared_v.transpose(1, 2),
        attn_mask=layout.shared_mask.unsqueeze(1),
        enable_gqa=True,
    ).transpose(1, 2)
    answered, attention = _attend(text_q, (shared_k, text_k), (shared_v, text_v), layout, layout.causal)
    both = torch.cat([mixed.reshape(edge, -1), answered.reshape(batch * asked * length, -1)])
    hidden = hidden + layer.self_attn.o_proj(both)
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return (*split(hidden), attention if watched else None)


def _attend(
    query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], layout: _Layout, causal: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries `[b, q, r, h, d]` over image block and question; output alike, attention `[b, q, h, r, s]`."""
    batch, asked, rows, heads, width = query.shape
    groups = keys[0].shape[2]
    grouped = query.unflatten(3, (groups, -1)) * width**-0.5  # [b, q, r, g, m, d]
    far = torch.einsum("bqrgmd,bsgd->bqgmrs", grouped, keys[0])
    near = torch.einsum("bqrgmd,bqtgd->bqgmrt", grouped, keys[1])
    far = far.masked_fill(~layout.valid[:, None, None, None, None, :], float("-inf"))
    near = near.masked_fill(~causal, float("-inf"))
    attention = torch.cat([far, near], -1).softmax(-1)
    far, near = attention.split([layout.shared, layout.length], -1)
    out = torch.einsum("bqgmrs,bsgd->bqrgmd", far, values[0]) + torch.einsum(
        "bqgmrt,bqtgd->bqrgmd", near, values[1]
    )
    return out.reshape(batch, asked, rows, heads, width), attention.flatten(2, 3)[..., : layout.shared]


def _last_layer(layer: nn.Module, shared: Tensor, text: Tensor, rows: Tensor, layout: _Layout) -> Tensor:
    """The last decoder layer, on the answer rows only: `[b, q, a, w]`."""
    _, shared_k, shared_v = _heads(layer, shared)
    query, text_k, text_v = _heads(layer, text)
    rotation = tuple(part.unsqueeze(1) for part in layout.text_rotation)
    shared_k = _rotate(shared_k, layout.shared_rotation)
    query, text_k = _rotate(query, rotation), _rotate(text_k, rotation)
    pick = rows[..., None].expand(-1, -1, -1, text.shape[-1])
    hidden = text.gather(2, pick)
    chosen = query.flatten(3).gather(2, pick).unflatten(3, query.shape[3:])
    causal = layout.causal[rows][:, :, None, None]  # [b, q, 1, 1, a, t]
    answered, _ = _attend(chosen, (shared_k, text_k), (shared_v, text_v), layout, causal)
    hidden = hidden + layer.self_attn.o_proj(answered.flatten(3))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
