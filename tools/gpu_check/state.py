"""What earlier calls found: kept in OUT/state.json, so that a check of an hour fits into calls of minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from foveate.runtime.errors import UsageError
from foveate.tools.gpu_check.records import FORMAT, Outcome, Row, Status

NAME: Final = "state.json"


@dataclass
class State:
    """Outcomes by row; `save` after each one."""

    path: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, *, fresh: bool = False) -> State:
        """What is there, or an empty state.

        Raises:
            UsageError: the file is not one of these.
        """
        path = out / NAME
        if fresh or not path.is_file():
            return cls(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}")
            found = [Outcome.model_validate(each) for each in document["outcomes"]]
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise UsageError(
                f"{path} cannot be gone on with",
                found=str(error).splitlines()[0][:200],
                mend="begin anew with --fresh, or name another folder",
            ) from error
        return cls(path, {each.id: each for each in found})

    def kept(self, row: Row, fingerprint: str, work: Path) -> Outcome | None:
        """The outcome of an earlier call, if it still holds.

        It does not for another machine or other versions, where the row was not run, and where what the row
        left for others is gone.
        """
        outcome = self.outcomes.get(row.id)
        if outcome is None or outcome.status is Status.NOT_RUN or outcome.machine != fingerprint:
            return None
        if row.makes and outcome.status is Status.PASS and not (work / row.makes).exists():
            return None
        return outcome

    def put(self, outcome: Outcome) -> None:
        """Remember, on the disk too."""
        self.outcomes[outcome.id] = outcome
        self.save()

    def save(self) -> None:
        """Write the file whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document: Mapping[str, object] = {
            "format": FORMAT,
            "outcomes": [each.model_dump(mode="json") for each in self.outcomes.values()],
        }
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)
