"""Every number that the controller decides by, in one record: value, unit, effect, origin, what half and twice do.

`benchmarks/simulate.py --set NAME=VALUE` replays recordings with another value, `--vary` with half and twice of each;
`benchmarks/fit_acceptance.py` fits the two rows of weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from edgellm.runtime.learning.lookup import STORE_VOTE, WEIGHTS

CHOSEN = "chosen by replaying recordings of our own prompts"
FITTED = "logistic regression on drafts for 40 prompts of our own"
GUESSED = "a round number"
ADAEDL = "AdaEDL, arXiv:2410.18351"
NOT_MEASURED = "not measured"


def _number(value: Any, unit: str, effect: str, origin: str = CHOSEN, half: str = "", twice: str = "") -> Any:
    about = {
        "unit": unit,
        "effect": effect,
        "origin": origin,
        "half": half or NOT_MEASURED,
        "twice": twice or NOT_MEASURED,
    }
    return field(default=value, metadata=about)


@dataclass(frozen=True, slots=True)
class Tuning:
    """See the metadata of each field; `about` gives it as lines."""

    # --- how likely a token is to be accepted
    lookup_weights: tuple[float, ...] = _number(
        WEIGHTS, "log odds", "of the features of a looked-up token (`Lookup`); where its learning begins", FITTED
    )
    model_weights: tuple[float, ...] = _number(
        (0.69, 1.15, -0.31, 0.06, -0.25, 0.72, 0.56, -0.42),
        "log odds",
        "of the features of a draft model's token (`Acceptance.judge`); where its learning begins",
        FITTED,
    )
    lookup_strength: float = _number(
        10.0, "sum of squared gradients", "larger: the first observations move the lookup weights less", GUESSED
    )
    model_strength: float = _number(
        40.0, "sum of squared gradients", "larger: the first observations move the model weights less"
    )
    store_vote: float = _number(
        STORE_VOTE, "share", "weight of a place in earlier answers against one in the conversation", GUESSED
    )
    acceptance_prior: float = _number(
        0.6, "probability", "acceptance of a draft model that nothing is known of", "mean over six pairs"
    )
    acceptance_prior_n: float = _number(
        8.0, "observations", "that the long mean counts for beside what was seen lately", GUESSED
    )
    acceptance_half_life: float = _number(40.0, "tokens", "after which an observation counts half", GUESSED)
    acceptance_mean_step: float = _number(0.005, "share", "of each observation in the long mean, kept on disk", GUESSED)
    optimism: float = _number(
        0.2, "probability", "added to the model's acceptance while untested; shrinks as 1 / (1 + n / optimism_n)"
    )
    optimism_n: float = _number(8.0, "observations", "after which optimism is half gone", GUESSED)
    max_acceptance: float = _number(0.95, "probability", "the most that is ever expected of a draft model", GUESSED)

    # --- what is looked at
    min_reach: float = _number(
        0.02, "probability", "a token whose chance of being reached and right is less is not considered"
    )
    min_reach_slope: float = _number(
        0.3, "share", "of what one more token costs, in tokens, that its chance must reach to be considered", GUESSED
    )
    passes_per_token: float = _number(
        1.3, "passes", "of a draft model of another vocabulary for a token of the target, before it is known",
        "mean over our pairs",
    )  # fmt: skip
    passes_per_token_step: float = _number(0.02, "share", "of a new draft in the mean of passes per token", GUESSED)
    model_price_share: float = _number(
        0.5, "share", "of a pass's price by which a looked-up token may be less likely than the model's", GUESSED
    )
    lookup_over_model: float = _number(
        0.5, "probability", "a looked-up token must be likelier than this to end the model's draft", GUESSED
    )
    max_model_starts: int = _number(
        4, "starts", "of the draft model in one round, looked-up tokens in between", GUESSED
    )

    # --- what time is worth
    rate_half_life: float = _number(
        6.0, "rounds", "of the rate at which tokens come; longer: a copy's pace is expected of the prose behind it"
    )
    rate_prior_rounds: float = _number(
        4.0, "rounds", "of plain decoding that the rate begins with, so that one lucky round makes nobody greedy",
        GUESSED,
    )  # fmt: skip
    horizon: float = _number(
        40.0, "rounds", "over which the reading of unread text (catch-up beyond `catch_up_tokens`) is amortised"
    )
    catch_up_tokens: int = _number(
        4, "tokens", "unread by the model that are charged to this round; more is amortised over the horizon"
    )

    # --- what may be lost
    max_loss_base: float = _number(
        0.5, "tokens", "that an answer may fall behind plain decoding, to begin with; the bound holds in a test"
    )
    max_loss_per_token: float = _number(
        0.01, "tokens", "added to that for each token of the answer: 1 % in the long run"
    )
    lead_at_first: float = _number(
        0.15, "tokens a round", "ahead of plain decoding that are assumed while nothing is known"
    )
    lead_to_stake: float = _number(0.12, "tokens a round", "ahead of plain decoding, beyond which more may be lost")
    lead_rounds: float = _number(20.0, "rounds", "of the lead beyond `lead_to_stake` that may be lost as well")
    lead_half_life: float = _number(70.0, "rounds", "of the mean lead over plain decoding, kept on disk", GUESSED)
    probe_share: float = _number(
        0.005, "share of the time", "for asking a draft model that does not pay whether it would by now"
    )
    max_probe_passes: float = _number(
        100.0, "passes of the target", "worth of time that is saved up for such probes", GUESSED
    )

    # --- stopping a draft of fixed length (--stop entropy)
    entropy_gamma: float = _number(0.2, "1 / nats", "of the bound 1 - sqrt(gamma H) on acceptance", ADAEDL)
    entropy_threshold: float = _number(0.6, "probability", "that the bound starts being held against", ADAEDL)
    entropy_wanted: float = _number(0.9, "probability", "acceptance that the threshold is steered to", ADAEDL)
    entropy_step: float = _number(0.01, "probability", "by which a round moves the threshold", ADAEDL)

    def with_set(self, assignments: list[str]) -> Tuning:
        """With `NAME=VALUE` for each; weights are numbers joined by commas. Raises ValueError."""
        known = {item.name: item for item in fields(self)}
        changes: dict[str, Any] = {}
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            if name not in known:
                raise ValueError(f"{name!r} is no number of the controller: {', '.join(known)}")
            default = cast(Any, known[name].default)
            if isinstance(default, tuple):
                changes[name] = tuple(float(part) for part in text.split(","))
                if len(changes[name]) != len(default):
                    raise ValueError(f"{name} takes {len(default)} numbers")
            else:
                changes[name] = type(default)(text)
        return replace(self, **changes)


TUNING = Tuning()


def about(tuning: Tuning = TUNING) -> list[str]:
    """A line for each number: name, value, unit, effect, origin."""
    return [
        f"{item.name} = {getattr(tuning, item.name)}  [{item.metadata['unit']}] {item.metadata['effect']} "
        f"({item.metadata['origin']}; half: {item.metadata['half']}; twice: {item.metadata['twice']})"
        for item in fields(tuning)
    ]
