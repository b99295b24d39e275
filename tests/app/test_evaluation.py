"""A pair is judged by one loop and one rule, whoever asks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_gguf import write_tiny

from edgellm.app.defaults import GOOD_SIZE_RATIO, MIN_TOKENS_PER_ROUND
from edgellm.app.evaluation import (
    EXPORT_QUESTIONS,
    N_DRAFT,
    N_TOKENS,
    Acceptance,
    PairReport,
    evaluate,
    judge,
)
from edgellm.export.obtain.store import ModelFile, locate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    located = locate(str(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx_train=2048)))
    assert located is not None
    return located


@pytest.fixture(scope="module")
def report(model: ModelFile) -> PairReport:
    return evaluate(model, model, measure=True)


def test_a_model_accepts_its_own_drafts(report: PairReport, model: ModelFile) -> None:
    assert report.measured is not None
    assert report.measured.n_draft == N_DRAFT
    assert report.measured.acceptance > 0.9
    assert report.to_json()["measured"]["acceptance"] == report.measured.acceptance
    assert report.to_json()["target"] == report.to_json()["draft"]


def test_an_export_is_judged_by_the_same_loop(model: ModelFile) -> None:
    facts = judge(model.path, model.path, measure=True)
    assert facts["same_vocabulary"]
    assert facts["acceptance"] > 0.9
    assert 0 < facts["n_tokens"] <= len(EXPORT_QUESTIONS) * N_TOKENS
    assert "acceptance" not in judge(model.path, model.path, measure=False)


def sized(report: PairReport, ratio: float, measured: Acceptance | None = None) -> PairReport:
    target = replace(report.target, n_bytes=round(report.draft.n_bytes * ratio))
    return replace(report, target=target, measured=measured)


def test_the_verdict_follows_from_size_and_from_what_is_accepted(report: PairReport) -> None:
    good, none, poor = (
        Acceptance(N_DRAFT, acceptance, per_round, 1.0, 0.1)
        for acceptance, per_round in ((0.9, 4.0), (0.0, 1.0), (0.1, MIN_TOKENS_PER_ROUND - 0.1))
    )
    kinds = [
        sized(report, ratio, measured).verdict.kind
        for ratio, measured in (
            (1.0, None), (GOOD_SIZE_RATIO - 1, None), (GOOD_SIZE_RATIO - 1, good), (GOOD_SIZE_RATIO + 1, None),
            (GOOD_SIZE_RATIO + 1, good), (GOOD_SIZE_RATIO + 1, poor), (GOOD_SIZE_RATIO + 1, none),
        )
    ]  # fmt: skip
    assert kinds == ["does not fit", "doubtful", "doubtful", "fits", "fits", "poor", "does not fit"]
