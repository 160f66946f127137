"""Made-up evidence for a method (torch, a batch) and its twin for the oracle (numpy, one item or sequence).

A test of a method needs few lines:

    for kind in ENCODER_KINDS:
        evidence = encoder_evidence(seed, kind=kind)
        compare_encoder("my-method", {"option": 1}, evidence, Budget(keep_tokens=5))

`compare_encoder` and `compare_decoder` run the eager module and the oracle, insist on equal indices wherever
the oracle's verdict is not `fragile`, on features to 1e-5 of their size, and say how many rows they compared.
Every value is drawn from `seed`; batches of the decoder are ragged, with junk beyond each length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.pruning import budget as budgets
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.registry import describe_method, make_method
from foveate.pruning.selection import Selection
from foveate.pruning.spec import Site
from foveate.tools.parity.choose import choose_decoder, choose_encoder
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, EncoderFacts

WIDTH, HIDDEN, HEADS, LAYERS, FEATURE_LAYER = 16, 24, 2, 4, 3  # encoder: w = c, the decoder's d, ...
QUERY_HEADS, KEY_HEADS, HEAD_DIM, SCALE = 4, 2, 6, 0.4
DECODER_LAYERS = 6
GRID = (4, 5)

NO_BUDGET = Budget()
Run = Callable[..., Selection]
"""Evidence, a budget and a seed to a selection: a method, or a graph of it."""

ENCODER_KINDS = ("random", "sharp", "ties", "equal", "zero", "clusters")
"""sharp: peaked attention; ties: three distinct patches, exact in float32; clusters: near groups."""

DECODER_KINDS = (
    *("random", "sharp", "several images", "mixed batch", "blind question", "one visual"),
    *("text only", "decode", "equal"),
)
"""mixed batch: with and without pictures; blind question: no text behind the picture."""


def model_shape(grid: tuple[int, int] = GRID, *, cls: bool = True) -> ModelShape:
    """The sizes that the evidence below has, for `PruningMethod.build`, `layers` and `hidden_layers`."""
    encoder = EncoderShape(LAYERS, FEATURE_LAYER, tuple(range(LAYERS)), cls, has_taps=cls, grid=grid)
    return ModelShape(encoder, WIDTH, WIDTH, HIDDEN, DECODER_LAYERS, grid[0] * grid[1])


def build(name: str, site: str, options: Mapping[str, object] | None = None, **shape: Any) -> PruningMethod:
    """The method, with seeded weights where it has any (`adapter_of` gives them to the oracle)."""
    method = make_method(name, dict(options or {}), Site(site))
    method.build(model_shape(**shape))
    draw = torch.Generator().manual_seed(7)
    for parameter in method.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=draw) / max(parameter.shape[-1], 1) ** 0.5)
    return method.eval()


def adapter_of(method: PruningMethod) -> dict[str, np.ndarray]:
    """A method's weights as its oracle gets them: an adapter has the same names and orientation."""
    return {name: value.numpy() for name, value in method.state_dict().items()}


# --- encoder ------------------------------------------------------------------------------------------------


def encoder_evidence(
    seed: int,
    b: int = 2,
    grid: tuple[int, int] = GRID,
    kind: str = "random",
    *,
    cls: bool = True,
) -> EncoderEvidence:
    """`b` items of one square tile: every layer's query, key and hidden state, and all that can be asked for.

    `asked_for` reduces it to what one method reads, and runs its extra tokens along.
    """
    draw = np.random.default_rng([seed, ENCODER_KINDS.index(kind)])
    n = grid[0] * grid[1]
    hidden = draw.normal(size=(LAYERS + 1, b, n + 1, WIDTH))
    query, key = draw.normal(size=(2, LAYERS, b, n + 1, WIDTH))
    projected, prompt, text = draw.normal(size=(b, n, HIDDEN)), *draw.normal(size=(2, b, HIDDEN))
    if kind == "sharp":
        query = query * 5
    if kind == "ties":  # eighths have exact products
        pick = np.concatenate([[0], 1 + draw.integers(0, min(3, n), n)])
        hidden, query, key = (np.round(each[:, :, pick] * 8) / 8 for each in (hidden, query, key))
        projected = np.round(projected[:, pick[1:] - 1] * 8) / 8
    if kind == "equal":
        hidden, key = (np.repeat(each[:, :, :1], n + 1, axis=2) for each in (hidden, key))
        projected = np.repeat(projected[:, :1], n, axis=1)
    if kind == "zero":
        hidden, query, key, projected, prompt, text = (
            np.zeros_like(each) for each in (hidden, query, key, projected, prompt, text)
        )
    if kind == "clusters":
        pick = draw.integers(0, min(4, n), n + 1)
        hidden = hidden[:, :, pick] + 0.05 * draw.normal(size=hidden.shape)
    rows = slice(None) if cls else slice(1, None)
    state = [torch.from_numpy(each).float() for each in hidden]
    patches = state[FEATURE_LAYER][:, 1:]

    def of(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float()

    return EncoderEvidence(
        features=patches,
        patches=patches,
        cls=state[FEATURE_LAYER][:, 0] if cls else None,
        query={i: of(query[i])[:, rows] for i in range(LAYERS)},
        key={i: of(key[i])[:, rows] for i in range(LAYERS)},
        num_heads=HEADS,
        pool=lambda score: score,
        tile=torch.zeros(b, n, dtype=torch.int64),
        prompt=of(prompt),
        projected=of(projected),
        hidden={i: each[:, rows] for i, each in enumerate(state)},
        text=of(text),
    )


def run_along(tokens: Tensor | np.ndarray, patches: Tensor | np.ndarray) -> np.ndarray:
    """What stands for the encoder on extra tokens [m, w] beside patches [n, w]: any function of both."""
    own, image = np.asarray(tokens, dtype=np.float64), np.asarray(patches, dtype=np.float64)
    looks = np.exp(own @ image.T / 8)
    return np.asarray(own + looks @ image / looks.sum(axis=1, keepdims=True), np.float32)


def encoder_facts(
    evidence: EncoderEvidence,
    item: int,
    grid: tuple[int, int] | None = GRID,
    adapter: Mapping[str, np.ndarray] | None = None,
) -> EncoderFacts:
    """The oracle's view of one item of `encoder_evidence`."""
    one = slice(item, item + 1)

    def own(value: Tensor | None) -> np.ndarray | None:
        return None if value is None else value[item].numpy()

    patches = evidence.patches[item].numpy()
    return EncoderFacts(
        patches=evidence.patches[one].numpy(),
        cls=None if evidence.cls is None else evidence.cls[one].numpy(),
        query={i: each[one].numpy() for i, each in evidence.query.items()},
        key={i: each[one].numpy() for i, each in evidence.key.items()},
        num_heads=evidence.num_heads,
        num_layers=LAYERS,
        feature_layer=FEATURE_LAYER,
        global_layers=tuple(range(LAYERS)),
        pool=lambda scores: scores[0],
        tile=evidence.tile[item].numpy(),
        projected=own(evidence.projected),
        prompt=own(evidence.prompt),
        features=evidence.features[item].numpy(),
        hidden={i: each[one].numpy() for i, each in evidence.hidden.items()},
        text=own(evidence.text),
        extra=lambda tokens: run_along(tokens, patches),
        grid=grid,
        adapter=adapter or {},
    )


def asked_for(method: PruningMethod, evidence: EncoderEvidence, grid: tuple[int, int]) -> EncoderEvidence:
    """What a graph would show the method: the layers and hidden states that it asks for, its extra tokens."""
    shape = model_shape(grid, cls=evidence.cls is not None).encoder
    layers, hidden, tokens = method.layers(shape), method.hidden_layers(shape), method.extra_tokens()
    rows = [] if tokens is None else [run_along(tokens.detach(), each) for each in evidence.patches]
    return evidence._replace(
        query={i: evidence.query[i] for i in layers},
        key={i: evidence.key[i] for i in layers},
        hidden={i: evidence.hidden[i] for i in hidden},
        extra=None if tokens is None else torch.from_numpy(np.stack(rows)),
    )


def compare_encoder(
    name: str,
    options: Mapping[str, object],
    evidence: EncoderEvidence,
    budget: Budget | Sequence[Budget] = NO_BUDGET,
    *,
    method: PruningMethod | None = None,
    grid: tuple[int, int] | None = GRID,
    even_ties: bool = False,
    run: Run | None = None,
) -> int:
    """Method and oracle on every item; how many were compared.

    `fragile` ones are not, but with `even_ties`: for evidence whose ties are exact on both sides. `run` is
    what chooses in the method's place: its graph.
    """
    module = method or build(name, "encoder", options, grid=grid or GRID, cls=evidence.cls is not None)
    given = _each(budget, len(evidence.features))
    chosen = _run(run or module, module.needs_seed, asked_for(module, evidence, grid or GRID), given)
    wanted = [
        choose_encoder(
            name,
            _params(name, "encoder", options),
            encoder_facts(evidence, item, grid, adapter_of(module)),
            asked,
        )
        for item, asked in enumerate(given)
    ]
    return _agree(chosen, wanted, [evidence.features.shape[1]] * len(given), even_ties)


# --- decoder ------------------------------------------------------------------------------------------------


def decoder_evidence(seed: int, b: int = 2, kind: str = "random", patches: int = 12) -> DecoderEvidence:
    """`b` sequences of a chunk with up to `patches` visual tokens a picture; ragged, padded with junk."""
    draw = np.random.default_rng([seed, DECODER_KINDS.index(kind)])
    prompts = [_prompt(draw, kind, number, patches) for number in range(b)]
    length = np.array([len(roles) for roles, _ in prompts])
    s = int(length.max() + draw.integers(0, 4) * (kind != "decode"))
    t = max(1, max(len(rows) for _, rows in prompts) + int(draw.integers(0, 3)))
    shapes = {"query": QUERY_HEADS, "key": KEY_HEADS, "query_plain": QUERY_HEADS, "key_plain": KEY_HEADS}
    values = {name: draw.normal(size=(b, heads, s, HEAD_DIM)) for name, heads in shapes.items()}
    if kind == "sharp":
        values["query"], values["query_plain"] = values["query"] * 4, values["query_plain"] * 4
    hidden, embedded = draw.normal(size=(2, b, s, HIDDEN))
    if kind == "equal":  # one key, one row: only exact arithmetic keeps the tie, so queries are zero
        values = {name: np.zeros_like(value) for name, value in values.items()}
        hidden, embedded = np.ones_like(hidden), np.ones_like(embedded)
    roles = np.stack([np.pad(roles, (0, s - len(roles)), constant_values=1) for roles, _ in prompts])
    rows = np.stack([np.pad(rows, (0, t - len(rows)), constant_values=-1) for _, rows in prompts])
    visual = np.array([sum(role == 1 for role in roles) for roles, _ in prompts])
    entered = visual + draw.integers(0, patches, b) * (visual > 0)
    return DecoderEvidence(
        **{name: torch.from_numpy(value).float() for name, value in values.items()},
        hidden=torch.from_numpy(hidden).float(),
        token_role=torch.from_numpy(roles.astype(np.int64)),
        query_index=torch.from_numpy(rows.astype(np.int64)),
        length=torch.from_numpy(length.astype(np.int64)),
        scale=SCALE,
        entered=torch.from_numpy(entered.astype(np.int64)),
        embedded=torch.from_numpy(embedded).float(),
    )


def _prompt(draw: np.random.Generator, kind: str, number: int, patches: int) -> tuple[list[int], list[int]]:
    """Roles and question rows: BOS, (text, picture) parts, the question, a protected tail that asks too."""
    images = {"text only": 0, "several images": 3}.get(kind, 1)
    if kind == "mixed batch":
        images = (0, 2, 1)[number % 3]
    if kind == "decode":
        return [0], []
    roles, rows = [0, 0], list[int]()
    for _ in range(images):
        roles += [1] * (1 if kind == "one visual" else int(draw.integers(2, patches + 1)))
        if images > 1:  # words between two pictures ask, too
            rows.append(len(roles))
            roles.append(2)
    if kind == "blind question":
        return roles, []
    for role in (0, *[2] * int(draw.integers(1, 6)), 0, 0):
        rows += [len(roles)] if images else []
        roles.append(role if images else 0)
    return roles, rows


def decoder_facts(
    evidence: DecoderEvidence, sequence: int, adapter: Mapping[str, np.ndarray] | None = None
) -> DecoderFacts:
    """The oracle's view of one sequence: its valid rows, and attention made in double precision."""
    s = int(evidence.length[sequence])

    def own(value: Tensor) -> np.ndarray:
        return value[sequence, :, :s].numpy()

    query, key = own(evidence.query), own(evidence.key)
    keys = key.repeat(len(query) // len(key), axis=0).astype(np.float64)  # g s e -> h s e
    logits = query.astype(np.float64) @ keys.transpose(0, 2, 1) * evidence.scale  # h s s
    logits[:, np.triu_indices(s, 1)[0], np.triu_indices(s, 1)[1]] = -np.inf
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    asked = [int(row) for row in evidence.query_index[sequence] if 0 <= row < s]
    return DecoderFacts(
        attention=powers / powers.sum(axis=-1, keepdims=True),
        query_plain=own(evidence.query_plain),
        key_plain=own(evidence.key_plain),
        roles=[int(role) for role in evidence.token_role[sequence, :s]],
        question=asked,
        scale=evidence.scale,
        query=query,
        key=key,
        hidden=evidence.hidden[sequence, :s].numpy(),
        embedded=np.zeros(0) if evidence.embedded is None else evidence.embedded[sequence, :s].numpy(),
        entered=0 if evidence.entered is None else int(evidence.entered[sequence]),
        adapter=adapter or {},
    )


def compare_decoder(
    name: str,
    options: Mapping[str, object],
    evidence: DecoderEvidence,
    budget: Budget | Sequence[Budget] = NO_BUDGET,
    *,
    method: PruningMethod | None = None,
    even_ties: bool = False,
    run: Run | None = None,
) -> int:
    """Method and oracle on every sequence; how many were compared; see `compare_encoder`."""
    module = method or build(name, "decoder", options)
    given = _each(budget, len(evidence.length))
    chosen = _run(run or module, module.needs_seed, evidence, given)
    wanted = [
        choose_decoder(
            name,
            _params(name, "decoder", options),
            decoder_facts(evidence, number, adapter_of(module)),
            asked,
        )
        for number, asked in enumerate(given)
    ]
    return _agree(chosen, wanted, [evidence.token_role.shape[1]] * len(given), even_ties)


# --- both ---------------------------------------------------------------------------------------------------


def _each(budget: Budget | Sequence[Budget], count: int) -> list[Budget]:
    return [budget] * count if isinstance(budget, Budget) else list(budget)


def _params(name: str, site: str, options: Mapping[str, object]) -> dict[str, object]:
    """The cut's options as a manifest has them: complete, and lists where Python has tuples."""
    return describe_method(name).check(Site(site), dict(options))


@torch.no_grad()
def _run(
    run: Run, needs_seed: bool, evidence: EncoderEvidence | DecoderEvidence, given: Sequence[Budget]
) -> Selection:
    budget = budgets.Budget(
        torch.tensor([each.keep_ratio for each in given], dtype=torch.float32),
        torch.tensor([each.keep_tokens for each in given], dtype=torch.int64),
    )
    seed = torch.tensor([each.seed for each in given], dtype=torch.int64) if needs_seed else None
    return run(evidence, budget, seed)


def _agree(chosen: Selection, wanted: Sequence[Choice], sizes: Sequence[int], even_ties: bool) -> int:
    """Equal order and count, close features, wherever the oracle is sure; how many rows that were."""
    assert (chosen.order.dtype, chosen.count.dtype) == (torch.int64, torch.int64)
    compared = 0
    for number, (choice, size) in enumerate(zip(wanted, sizes, strict=True)):
        if choice.fragile and not even_ties:
            continue
        compared += 1
        order, count = chosen.order[number].tolist(), int(chosen.count[number])
        assert order[:count] == list(choice.kept), f"row {number} keeps others"
        rest = [i for i in range(size) if i not in set(choice.kept)]
        assert order[count:] == rest, f"row {number}: order is kept, then the rest, both ascending"
        if choice.features is not None:
            assert chosen.features is not None, "the oracle rewrites rows, the method does not"
            got = chosen.features[number, list(choice.kept)].numpy()
            scale = max(float(np.abs(choice.features).max(initial=0)), 1e-6)
            np.testing.assert_allclose(got, choice.features, rtol=0, atol=1e-5 * scale)
    return compared
