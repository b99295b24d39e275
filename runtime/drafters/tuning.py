"""Every number that the controller decides by, in one record: value, unit, effect, origin, what half and twice do.

`benchmarks/simulate.py --set NAME=VALUE` replays recordings with another value, `--vary` with half and twice of each;
`benchmarks/fit_acceptance.py` fits the two rows of weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from edgellm.runtime.learning.lookup import STORE_VOTE, WEIGHTS

CHOSEN = "chosen by hand, with the simulator"
FITTED = "logistic regression on drafts for 40 prompts of our own"
GUESSED = "a round number; nothing recorded"
ADAEDL = "AdaEDL, arXiv:2410.18351"

# What half and twice of a number do to the controller's speed, as shares of it: `simulate.py --vary` on 13 answers (724
# tokens) of Qwen2.5-Coder-1.5B with SmolLM2-135M, where each further token costs 5 % of a pass and the draft model 10 %
# of one, then where they cost 40 % and 20 %. On so few, 1 % of the first and 3 % of the second are noise. What bounds a
# loss (`max_loss_..`, `lead_..`) guards single answers more than the sum.
HALF_AND_TWICE: dict[str, tuple[float, float, float, float]] = {
    "lookup_strength": (0.001, -0.007, -0.003, -0.013),
    "model_strength": (-0.003, 0.003, 0.005, 0.000),
    "store_vote": (0.005, 0.003, -0.010, -0.014),
    "acceptance_prior": (-0.001, 0.008, 0.017, 0.049),
    "acceptance_prior_n": (-0.007, 0.006, -0.006, -0.026),
    "acceptance_half_life": (-0.003, -0.003, -0.000, -0.008),
    "acceptance_mean_step": (-0.000, 0.000, -0.007, 0.006),
    "optimism": (0.000, 0.012, 0.015, 0.003),
    "optimism_n": (0.000, -0.002, -0.013, -0.006),
    "max_acceptance": (0.005, 0.000, 0.017, 0.000),
    "min_reach": (0.000, 0.001, 0.000, 0.000),
    "min_reach_slope": (0.005, 0.001, 0.010, 0.000),
    "passes_per_token": (-0.004, -0.001, 0.011, 0.017),
    "passes_per_token_step": (0.001, -0.003, -0.001, -0.001),
    "model_price_share": (0.005, 0.013, -0.007, 0.028),
    "lookup_over_model": (0.000, 0.000, 0.000, 0.000),
    "max_model_starts": (0.000, 0.000, 0.000, 0.000),
    "rate_half_life": (-0.010, 0.003, 0.004, -0.008),
    "rate_prior_rounds": (0.008, -0.021, -0.013, -0.015),
    "horizon": (0.000, 0.000, 0.001, 0.008),
    "catch_up_tokens": (0.000, 0.000, -0.023, -0.012),
    "max_loss_base": (0.000, 0.000, 0.031, 0.032),
    "max_loss_per_token": (0.000, 0.000, 0.002, 0.037),
    "lead_at_first": (0.000, 0.000, -0.006, 0.005),
    "lead_to_stake": (0.000, 0.000, 0.008, -0.004),
    "lead_rounds": (0.000, 0.000, 0.019, 0.037),
    "lead_half_life": (0.000, 0.000, 0.024, 0.002),
    "probe_share": (0.000, 0.000, -0.016, 0.010),
    "max_probe_passes": (0.000, 0.000, 0.000, 0.000),
}


def _number(value: Any, unit: str, effect: str, origin: str = CHOSEN) -> Any:
    return field(default=value, metadata={"unit": unit, "effect": effect, "origin": origin})


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
        0.6, "probability", "acceptance of a draft model that nothing is known of", GUESSED
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
        GUESSED,
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

    # --- stopping a draft of fixed length (`EngineOptions.stop` "entropy")
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
    """A line for each number: name, value, unit, effect, origin, and what half and twice of it do to the speed."""
    lines = []
    for item in fields(tuning):
        measured = "not measured"
        if item.name in HALF_AND_TWICE:
            shares = HALF_AND_TWICE[item.name]
            measured = "half {:+.1%}, twice {:+.1%}; where passes are expensive {:+.1%}, {:+.1%}".format(*shares)
        says = item.metadata
        value = f"{item.name} = {getattr(tuning, item.name)} [{says['unit']}]"
        lines.append(f"{value} {says['effect']} ({says['origin']}; {measured})")
    return lines
