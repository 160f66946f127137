"""An independent PyTorch reference: transformers' own modules, run one layer at a time.

Nothing here comes from `foveate.export`, `foveate.pruning` or `foveate.runtime`. The encoder, the layers, the
positions and the head are transformers' (an `Oracle` of the family, eager attention, float32); which tokens
stay is decided by the loop-written rules of `foveate.tools.parity.oracles`. There is no cache: generation
recomputes the whole sequence for every token.

Why that equals cached decoding. A prompt's cuts are decided once, when it is read. A generated token passes
every layer, attends to earlier rows only, and behind a cut to the rows that the cut kept. No earlier row ever
sees a later one (or only rows of its own image, which came with it): recomputing `kept prompt rows +
generated rows` segment by segment gives every row the value that a cache would hold for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from foveate.tools.parity.choose import choose_decoder, choose_encoder
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, EncoderFacts
from foveate.tools.parity.families import Encoded, ItemTrace, LayerRun, Oracle
from foveate.tools.parity.prompts import VISUAL, Turn
from foveate.tools.parity.reference_parts import (
    METHOD_BUDGET,
    Chunk,
    Cut,
    Flow,
    Generated,
    TurnTrace,
    survivors,
)
from foveate.tools.parity.skipping import Run, runner

REMEMBERED = 8  # prompts whose images are remembered: all layers of a large encoder take much memory


class Reference:
    """transformers' model with the pruning of the paper written around it."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.num_layers = len(oracle.text.layers)
        self._seen: dict[int, tuple[Encoded, list[ItemTrace]]] = {}

    # --- vision ---------------------------------------------------------------------------------------------

    def items(self, turn: Turn) -> list[ItemTrace]:
        """The images and videos of a turn, with the user's words for methods that look at them."""
        if turn.source is None or not turn.has_items:
            return []
        if id(turn.source) not in self._seen:
            if len(self._seen) >= REMEMBERED:
                del self._seen[next(iter(self._seen))]
            # The source is kept, so that its id stays its own.
            traces = turn.source.in_order(self.oracle.items(turn.source.inputs))
            self._seen[id(turn.source)] = turn.source, traces
        traces = self._seen[id(turn.source)][1][turn.first_item :]
        words = self.oracle.embed(torch.tensor(turn.words, dtype=torch.long)) if turn.words else None
        width = traces[0].projected.shape[1]
        prompt = np.zeros(width, np.float32) if words is None else words.mean(dim=0).numpy()
        return [replace(trace, facts=replace(trace.facts, prompt=prompt)) for trace in traces]

    def choose_items(
        self,
        turn: Turn,
        traces: Sequence[ItemTrace],
        plan: Sequence[Cut],
        budgets: Mapping[str, Budget],
    ) -> tuple[Choice, ...]:
        """Visual tokens of each item that stay; all of them without an encoder cut."""
        cut = next((cut for cut in plan if cut.site == "encoder"), None)
        if cut is None:
            return tuple(Choice(tuple(range(len(trace.projected)))) for trace in traces)
        text = self.text_feature(turn) if cut.reads_text else None
        budget = budgets.get(cut.key, METHOD_BUDGET)
        return tuple(self._choose(trace, cut, budget, text) for trace in traces)

    def text_feature(self, turn: Turn) -> np.ndarray:
        """BOS and the user's words, read alone by the text model: last hidden state [d] of the last one.

        Zeros where a model without BOS is told nothing.
        """
        rows = self.oracle.read(torch.tensor(turn.words, dtype=torch.long)).numpy()
        return np.asarray(rows[-1] if len(rows) else np.zeros(rows.shape[1], np.float32))

    def _choose(self, trace: ItemTrace, cut: Cut, budget: Budget, text: np.ndarray | None) -> Choice:
        facts: EncoderFacts = replace(trace.facts, adapter=cut.adapter, text=text)
        choice = choose_encoder(cut.method, cut.params, facts, budget)
        # Visual tokens before the candidates (LLaVA's CLS with "full") are not ranked, and stay.
        leading = len(trace.projected) - len(facts.tile)
        kept = (*range(leading), *(leading + j for j in choice.kept))
        if choice.features is None:
            return Choice(kept, choice.fragile)
        first = np.zeros((0, choice.features.shape[1]))
        if leading:
            assert trace.features is not None
            first = trace.features[:leading].numpy()
        return Choice(kept, choice.fragile, np.concatenate([first, choice.features]))

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
            tail = self._plain_chunk(tokens, trace)
            last = self._run([*chunks, tail], plan, budgets or {}, ())
            tokens.append(int(last.logits[-1].argmax()))
        return Generated(tuple(tokens), trace)

    def generate_unpruned(self, turn: Turn, max_new_tokens: int, eos: Sequence[int] = ()) -> tuple[int, ...]:
        """Greedy tokens of transformers' own `generate`, with its cache. The turn is a whole prompt."""
        if turn.source is None or len(turn.source.input_ids) != len(turn.input_ids):
            raise ValueError("transformers reads whole prompts only")
        return self.oracle.generate(turn.source, max_new_tokens, eos)

    def _embed(
        self, turn: Turn, plan: Sequence[Cut], budgets: Mapping[str, Budget], positions: str, start: int
    ) -> tuple[Chunk, tuple[Choice, ...]]:
        """Prune the items, then write the kept visual tokens in place of their placeholders."""
        traces = self.items(turn)
        chosen = self.choose_items(turn, traces, plan, budgets)
        ids = [0 if item >= 0 else token for token, item in zip(turn.input_ids, turn.item, strict=True)]
        embedded = self.oracle.embed(torch.tensor(ids, dtype=torch.long)).clone()
        levels = max((len(t.deepstack) for t in traces if t.deepstack is not None), default=0)
        deepstack = torch.zeros(levels, *embedded.shape)
        dropped: set[int] = set()
        for number, (trace, choice) in enumerate(zip(traces, chosen, strict=True)):
            rows = [row for row, item in enumerate(turn.item) if item == number]
            embedded[rows] = trace.projected
            if choice.features is not None:
                made = self.oracle.project(torch.from_numpy(choice.features).float())
                embedded[[rows[j] for j in choice.kept]] = made
            if trace.deepstack is not None:
                deepstack[:, rows] = trace.deepstack
            dropped |= set(rows) - {rows[j] for j in choice.kept}
        alive = [row for row in range(len(turn.input_ids)) if row not in dropped]
        unpruned = torch.from_numpy(turn.positions)  # [s, axes], from 0
        compact = torch.arange(len(alive))[:, None].expand(-1, unpruned.shape[1])
        places = compact if positions == "compact" else unpruned[alive]
        chunk = Chunk(
            embedded=embedded[alive],
            positions=start + places,
            # Behind the last row, as transformers' generate goes on; a video's times may have been later.
            next_position=start + 1 + int((compact if positions == "compact" else unpruned)[-1].max()),
            roles=[turn.roles[row] for row in alive],
            query=[alive.index(row) for row in turn.query],
            row_names=alive,
            block=torch.tensor(turn.item, dtype=torch.long)[alive],
            number=torch.tensor([turn.item[:row].count(item) for row, item in enumerate(turn.item)])[alive],
            deepstack=deepstack[:, alive],
            alive=[list(range(len(alive)))],
        )
        return chunk, chosen

    def _plain_chunk(self, tokens: Sequence[int], after: TurnTrace) -> Chunk:
        """Generated tokens: protected, so every cut lets them through; all axes count on alike."""
        count, start = len(tokens), after.next_position
        embedded = self.oracle.embed(torch.tensor(tokens, dtype=torch.long))
        return Chunk(
            embedded=embedded,
            positions=torch.arange(start, start + count)[:, None].expand(-1, after.positions.shape[1]),
            next_position=start + count,
            roles=[0] * count,
            query=[],
            row_names=list(range(count)),
            block=torch.full((count,), -1),
            number=torch.full((count,), -1),
            deepstack=torch.zeros(0, *embedded.shape),
            alive=[list(range(count))],
        )

    def _run(
        self,
        chunks: Sequence[Chunk],
        plan: Sequence[Cut],
        budgets: Mapping[str, Budget],
        items: tuple[Choice, ...],
    ) -> TurnTrace:
        """All segments over all chunks; the last chunk is cut on the way, the earlier ones were before."""
        cuts = [cut for cut in plan if cut.site == "decoder"]
        bounds = [0, *(int(cut.layer or 0) for cut in cuts), self.num_layers]
        flow, last, run_layer = Flow.of(chunks), chunks[-1], runner(self.oracle, plan)
        records: list[Tensor] = []
        chosen: dict[str, Choice] = {}
        facts: dict[str, DecoderFacts] = {}
        for segment, (first, stop) in enumerate(itertools.pairwise(bounds)):
            width = len(last.alive[segment])
            for layer in range(first, stop):
                flow, run = _layer(run_layer, layer, flow)
                records.append(run.out[-width:])
            if segment < len(cuts):
                cut = cuts[segment]
                if len(last.alive) == segment + 1:
                    facts[cut.key] = _decoder_facts(run, flow.hidden, last, segment, cut)
                    chosen[cut.key] = _cut(last, cut, facts[cut.key], budgets.get(cut.key, METHOD_BUDGET))
                flow = flow.only(survivors(chunks, segment)).rewritten(chunks, segment + 1)
        return TurnTrace(
            items=items,
            rows=tuple(tuple(last.row_names[row] for row in alive) for alive in last.alive),
            cuts=chosen,
            embedded=last.embedded,
            positions=last.positions,
            block=last.block,
            deepstack=last.deepstack,
            hidden=tuple(records),
            logits=self.oracle.logits(flow.hidden[-len(last.alive[-1]) :]),
            next_position=last.next_position,
            facts=facts,
        )


def _layer(run_layer: Run, index: int, flow: Flow) -> tuple[Flow, LayerRun]:
    """One decoder layer over all rows; the flow behind it, and what the layer itself did."""
    run = run_layer(index, flow)
    hidden = run.out + flow.deepstack[index] if index < len(flow.deepstack) else run.out
    return replace(flow, hidden=hidden), run


def _cut(chunk: Chunk, cut: Cut, facts: DecoderFacts, budget: Budget) -> Choice:
    """Decides a cut for the newest chunk, for good."""
    choice = choose_decoder(cut.method, cut.params, facts, budget)
    here = chunk.alive[-1]
    chunk.alive.append([here[row] for row in choice.kept])
    if choice.features is not None:
        chunk.rewritten[len(chunk.alive) - 1] = torch.from_numpy(choice.features).float()
    return choice


def _decoder_facts(run: LayerRun, hidden: Tensor, chunk: Chunk, segment: int, cut: Cut) -> DecoderFacts:
    """A cut's evidence: the newest chunk only, earlier turns are neither ranked nor in the softmax.

    `hidden` [rows, d] of all chunks is what the layer gave, with any DeepStack rows.
    """
    alive = chunk.alive[segment]
    width = len(alive)
    attention = run.attention[:, -width:, -width:]
    if attention.shape != run.attention.shape:
        # A softmax over fewer keys is the same numbers, normalised again.
        attention = attention / attention.sum(dim=-1, keepdim=True)
    return DecoderFacts(
        attention=attention.numpy(),
        query_plain=run.query_plain[:, -width:].numpy(),
        key_plain=run.key_plain[:, -width:].numpy(),
        roles=[chunk.roles[row] for row in alive],
        question=[alive.index(row) for row in chunk.query if row in alive],
        scale=run.scale,
        query=run.query[:, -width:].numpy(),
        key=run.key[:, -width:].numpy(),
        hidden=hidden[-width:].numpy(),
        embedded=chunk.embedded[alive].numpy(),
        entered=chunk.roles.count(VISUAL),
        adapter=cut.adapter,
    )
