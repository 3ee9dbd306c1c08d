"""What a check of a loss has found."""

import dataclasses
from typing import Any

# holds: as it must be. fails: the loss is not proved. inconclusive: could not be decided, and is not counted as passed.
# excepted: does not apply or is outside what the loss answers for; the message says why.
VERDICTS = ("holds", "fails", "inconclusive", "excepted")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    section: str  # accuracy, adversarial, dy, structure, meaning, contract
    check: str  # what was asked, in a few words
    verdict: str  # out of VERDICTS
    message: str = ""  # who is wrong, at which input, with both values; or what was checked
    mode: str = ""  # analytic or auto, where only one is meant
    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # plain numbers for the report

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS, self.verdict
