"""From a cut's evidence to the indices that stay: finds a method's oracle and asks it.

Built-in methods have theirs in `foveate.tools.parity.methods`; a method that a package adds brings its own by
an entry point of group `foveate.oracles` with the method's name.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, EncoderFacts, NoOracleError, Params
from foveate.tools.parity.oracles import VISUAL

ENTRY_POINT_GROUP = "foveate.oracles"
METHODS = "foveate.tools.parity.methods"


def choose_encoder(method: str, params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay. Raises NoOracleError."""
    return find_rule(method, "encoder")(params, facts, budget)


def choose_decoder(method: str, params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay. Raises NoOracleError."""
    rule = find_rule(method, "decoder")
    if VISUAL not in facts.roles:
        return Choice(tuple(range(len(facts.roles))))
    return rule(params, facts, budget)


def find_rule(method: str, site: str) -> Callable[..., Choice]:
    """The function that says what a method keeps at a site. Raises NoOracleError."""
    module = _module_name(method)
    rule = getattr(importlib.import_module(module), site, None) if module else None
    if rule is None:
        raise NoOracleError(
            f"no oracle is written for method '{method}' at the {site} site; "
            f"a package brings one by an entry point of group {ENTRY_POINT_GROUP}"
        )
    found: Callable[..., Choice] = rule
    return found


def reads_whole_chunk(method: str, params: Params) -> bool:
    """Whether rows behind the question, such as an answer's, have a say in a decoder cut.

    So with option `query=all`, and where the oracle's module says `WHOLE_CHUNK = True`.
    """
    module = _module_name(method)
    always = bool(module) and getattr(importlib.import_module(str(module)), "WHOLE_CHUNK", False)
    return always or params.get("query") == "all"


def list_oracles() -> tuple[str, ...]:
    """Names of the built-in methods that have an oracle."""
    folder = Path(__file__).parent / "methods"
    return tuple(sorted(f.stem.replace("_", "-") for f in folder.glob("*.py") if not f.stem.startswith("_")))


def _module_name(method: str) -> str | None:
    if method in list_oracles():
        return f"{METHODS}.{method.replace('-', '_')}"
    return next((point.module for point in entry_points(group=ENTRY_POINT_GROUP, name=method)), None)
