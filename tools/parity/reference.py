"""An independent PyTorch reference: transformers' own modules, run one layer at a time.

Nothing here comes from `foveate.export`, `foveate.pruning` or `foveate.runtime`. The layers, the rotary
embedding, the projector and the head are transformers' (eager attention, float32); which tokens stay is
decided by the loop-written rules of `foveate.tools.parity.oracles`. There is no cache: generation recomputes
the whole sequence for every token.

Why that equals cached decoding. A prompt's cuts are decided once, when it is read. A generated token passes
every layer, attends to earlier rows only, and behind a cut to the rows that the cut kept. Attention is
causal, so no earlier row ever sees a later one: recomputing `kept prompt rows + generated rows` segment by
segment gives every row the value that a cache would hold for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaForConditionalGeneration

from foveate.tools.parity.choose import (
    Budget,
    Choice,
    DecoderFacts,
    EncoderFacts,
    choose_decoder,
    choose_encoder,
)
from foveate.tools.parity.prompts import Turn
from foveate.tools.parity.reference_parts import (
    METHOD_BUDGET,
    Chunk,
    Cut,
    Generated,
    Probe,
    TurnTrace,
    VisionTrace,
    keep_output,
    split_heads,
    survivors,
)


class Reference:
    """transformers' LLaVA with the pruning of the paper written around it."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder in float32 with eager attention. Raises what transformers raises."""
        model = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.config: Any = model.config
        self.tower = model.model.vision_tower
        self.text = model.model.language_model
        self.num_layers = len(self.text.layers)

    # --- vision ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def vision(self, pixel_values: np.ndarray) -> VisionTrace:
        """Run the vision tower on `pixel_values` [b, 3, height, width] and record every layer."""
        pixels = torch.from_numpy(np.ascontiguousarray(pixel_values)).to(torch.float32)
        taps: dict[str, list[Tensor]] = {"query": [], "key": []}
        handles = []
        for layer in self.tower.encoder.layers:
            handles.append(layer.self_attn.q_proj.register_forward_hook(keep_output(taps["query"])))
            handles.append(layer.self_attn.k_proj.register_forward_hook(keep_output(taps["key"])))
        try:
            out = self.tower(pixels, output_hidden_states=True)
        finally:
            for handle in handles:
                handle.remove()
        features = self._select(out.hidden_states)
        return VisionTrace(
            embedded=out.hidden_states[0],
            hidden=tuple(out.hidden_states[1:]),
            query=tuple(taps["query"]),
            key=tuple(taps["key"]),
            features=features,
            projected=self.model.model.multi_modal_projector(features),
        )

    def _select(self, hidden: Sequence[Tensor]) -> Tensor:
        """LLaVA's choice of layers, side by side on the last axis. Returns [b, n, c * layers]."""
        chosen = self.config.vision_feature_layer
        layers = [chosen] if isinstance(chosen, int) else list(chosen)
        start = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return torch.cat([hidden[layer][:, start:] for layer in layers], dim=-1)

    def encoder_facts(self, trace: VisionTrace, image: int) -> EncoderFacts:
        """The encoder site's evidence for one image: patches and CLS of the (last) selected hidden state."""
        index = self.last_vision_layer
        state = trace.embedded if index < 0 else trace.hidden[index]
        return EncoderFacts(
            features=state[image, 1:].numpy(),
            cls=state[image, 0].numpy(),
            query=[layer[image].numpy() for layer in trace.query],
            key=[layer[image].numpy() for layer in trace.key],
            num_heads=int(self.config.vision_config.num_attention_heads),
            feature_layer=index,
        )

    @property
    def last_vision_layer(self) -> int:
        """Encoder layer whose output LLaVA selects (the last one of several); -1: the embeddings."""
        chosen = self.config.vision_feature_layer
        last = int(chosen if isinstance(chosen, int) else chosen[-1])
        count = int(self.config.vision_config.num_hidden_layers)
        return (last if last >= 0 else count + 1 + last) - 1

    # --- decoder --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(
        self,
        turns: Sequence[Turn],
        plan: Sequence[Cut] = (),
        budgets: Mapping[str, Budget] | None = None,
        positions: str = "compact",
    ) -> TurnTrace:
        """Read a conversation; the trace is the last turn's. Each turn decides its own cuts, once."""
        return self._read(turns, plan, budgets or {}, positions)[0]

    def _read(
        self, turns: Sequence[Turn], plan: Sequence[Cut], budgets: Mapping[str, Budget], positions: str
    ) -> tuple[TurnTrace, list[Chunk]]:
        chunks: list[Chunk] = []
        trace: TurnTrace | None = None
        for turn in turns:
            start = 0 if trace is None else trace.next_position
            chunk, kept = self._embed(turn, plan, budgets, positions, start)
            chunks.append(chunk)
            trace = self._run(chunks, plan, budgets, kept)
        if trace is None:
            raise ValueError("a conversation needs at least one turn")
        return trace, chunks

    @torch.no_grad()
    def generate(
        self,
        turns: Sequence[Turn],
        max_new_tokens: int,
        plan: Sequence[Cut] = (),
        budgets: Mapping[str, Budget] | None = None,
        positions: str = "compact",
        eos: Sequence[int] = (),
    ) -> Generated:
        """Greedy tokens, every step a full recompute. An end-of-text token ends the list, as its last."""
        trace, chunks = self._read(turns, plan, budgets or {}, positions)
        tokens = [int(trace.logits[-1].argmax())]
        while len(tokens) < max_new_tokens and tokens[-1] not in eos:
            tail = self._plain_chunk(tokens, trace.next_position)
            last = self._run([*chunks, tail], plan, budgets or {}, ())
            tokens.append(int(last.logits[-1].argmax()))
        return Generated(tuple(tokens), trace)

    @torch.no_grad()
    def generate_unpruned(self, turn: Turn, max_new_tokens: int, eos: Sequence[int] = ()) -> tuple[int, ...]:
        """Greedy tokens of transformers' own `generate`, with its cache."""
        ids = torch.tensor([turn.input_ids], dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if turn.pixel_values is not None:
            inputs["pixel_values"] = torch.from_numpy(turn.pixel_values)
        ends = list(eos) or None
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=(ends or [0])[0]
        )
        made = self.model.generate(**inputs, generation_config=config)
        return tuple(int(token) for token in made[0, ids.shape[1] :])

    def _embed(
        self, turn: Turn, plan: Sequence[Cut], budgets: Mapping[str, Budget], positions: str, start: int
    ) -> tuple[Chunk, tuple[Choice, ...]]:
        """Prune the images, then write the kept visual tokens in place of their placeholders."""
        ids = torch.tensor(turn.input_ids, dtype=torch.long)
        embedded = self.text.embed_tokens(ids).clone()
        slots = [row for row, token in enumerate(turn.input_ids) if token == self.config.image_token_id]
        chosen: tuple[Choice, ...] = ()
        alive = list(range(len(turn.input_ids)))
        if slots and turn.pixel_values is not None:
            trace = self.vision(turn.pixel_values)
            embedded[slots] = trace.projected.flatten(0, 1)  # [b, n, d] -> [b * n, d]
            chosen = self.choose_patches(trace, plan, budgets)
            kept_slots = {
                slots[image * trace.projected.shape[1] + j] for image, c in enumerate(chosen) for j in c.kept
            }
            alive = [row for row in alive if row in kept_slots or row not in set(slots)]
        numbers = alive if positions == "original" else range(len(alive))
        chunk = Chunk(
            embedded=embedded[alive],
            positions=torch.tensor([start + number for number in numbers], dtype=torch.long),
            roles=[turn.roles[row] for row in alive],
            query=[alive.index(row) for row in turn.query],
            row_names=alive,
            alive=[list(range(len(alive)))],
        )
        return chunk, chosen

    def choose_patches(
        self, trace: VisionTrace, plan: Sequence[Cut], budgets: Mapping[str, Budget]
    ) -> tuple[Choice, ...]:
        """Rows of `features` that stay, for each image; all of them without an encoder cut."""
        images, count = trace.features.shape[:2]
        cut = next((cut for cut in plan if cut.site == "encoder"), None)
        if cut is None:
            return tuple(Choice(tuple(range(count))) for _ in range(images))
        budget = budgets.get(cut.key, METHOD_BUDGET)
        chosen = [
            choose_encoder(cut.method, cut.params, self.encoder_facts(trace, image), budget)
            for image in range(images)
        ]
        if self.config.vision_feature_select_strategy == "full":
            # Then row 0 is the CLS token: it is no patch, is not ranked, and stays.
            chosen = [Choice((0, *(j + 1 for j in one.kept)), one.fragile) for one in chosen]
        return tuple(chosen)

    def _plain_chunk(self, tokens: Sequence[int], start: int) -> Chunk:
        """Generated tokens: protected, so every cut lets them through."""
        count = len(tokens)
        return Chunk(
            embedded=self.text.embed_tokens(torch.tensor(tokens, dtype=torch.long)),
            positions=torch.arange(start, start + count),
            roles=[0] * count,
            query=[],
            row_names=list(range(count)),
            alive=[list(range(count))],
        )

    def _run(
        self,
        chunks: Sequence[Chunk],
        plan: Sequence[Cut],
        budgets: Mapping[str, Budget],
        images: tuple[Choice, ...],
    ) -> TurnTrace:
        """All segments over all chunks; the last chunk is cut on the way, the earlier ones were before."""
        cuts = [cut for cut in plan if cut.site == "decoder"]
        bounds = [0, *(int(cut.layer or 0) for cut in cuts), self.num_layers]
        hidden = torch.cat([chunk.embedded for chunk in chunks])
        last = chunks[-1]
        records: list[Tensor] = []
        chosen: dict[str, Choice] = {}
        facts: dict[str, DecoderFacts] = {}
        for segment, (first, stop) in enumerate(itertools.pairwise(bounds)):
            spot = torch.cat([chunk.positions[chunk.alive[segment]] for chunk in chunks])
            width = len(last.alive[segment])
            for layer in range(first, stop):
                hidden, probe = self._layer(layer, hidden, spot)
                records.append(hidden[-width:])
            if segment < len(cuts):
                cut = cuts[segment]
                if len(last.alive) == segment + 1:
                    facts[cut.key] = self._decoder_facts(probe, last, segment)
                    budget = budgets.get(cut.key, METHOD_BUDGET)
                    chosen[cut.key] = choose_decoder(cut.method, cut.params, facts[cut.key], budget)
                    last.alive.append([last.alive[segment][row] for row in chosen[cut.key].kept])
                hidden = hidden[survivors(chunks, segment)]
        width = len(last.alive[-1])
        logits = self.model.lm_head(self.text.norm(hidden[-width:]))
        return TurnTrace(
            images=images,
            rows=tuple(tuple(last.row_names[row] for row in alive) for alive in last.alive),
            cuts=chosen,
            embedded=last.embedded,
            positions=last.positions,
            hidden=tuple(records),
            logits=logits,
            facts=facts,
        )

    def _layer(self, index: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Probe]:
        """One transformers layer over rows `hidden` [s, d] at `positions` [s], causal by row order."""
        layer = self.text.layers[index]
        rows = hidden.shape[0]
        window = getattr(layer.self_attn, "sliding_window", None)
        if window is not None and rows > window:
            raise ValueError(f"{rows} rows do not fit the sliding window of {window} of layer {index}")
        rotary = self.text.rotary_emb(hidden[None], positions[None])
        mask = torch.full((rows, rows), torch.finfo(torch.float32).min).triu(1)[None, None]  # [1, 1, s, s]
        taps: dict[str, list[Tensor]] = {"query": [], "key": [], "attention": []}
        handles = [
            layer.self_attn.q_proj.register_forward_hook(keep_output(taps["query"])),
            layer.self_attn.k_proj.register_forward_hook(keep_output(taps["key"])),
            layer.self_attn.register_forward_hook(keep_output(taps["attention"], 1)),
        ]
        try:
            out = layer(
                hidden[None],
                attention_mask=mask,
                position_ids=positions[None],
                position_embeddings=rotary,
                past_key_values=None,
                use_cache=False,
            )
        finally:
            for handle in handles:
                handle.remove()
        width = int(layer.self_attn.head_dim)
        query, key = (split_heads(taps[name][0], width) for name in ("query", "key"))
        return out[0], Probe(taps["attention"][0][0], query, key, float(layer.self_attn.scaling))

    def _decoder_facts(self, probe: Probe, chunk: Chunk, segment: int) -> DecoderFacts:
        """A cut's evidence: the newest chunk only, earlier turns are neither ranked nor in the softmax."""
        alive = chunk.alive[segment]
        width = len(alive)
        attention = probe.attention[:, -width:, -width:]
        if attention.shape != probe.attention.shape:
            # A softmax over fewer keys is the same numbers, normalised again.
            attention = attention / attention.sum(dim=-1, keepdim=True)
        return DecoderFacts(
            attention=attention.numpy(),
            query_plain=probe.query[0, :, -width:].numpy(),
            key_plain=probe.key[0, :, -width:].numpy(),
            roles=[chunk.roles[row] for row in alive],
            question=[alive.index(row) for row in chunk.query if row in alive],
            scale=probe.scale,
        )
