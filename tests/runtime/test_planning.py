"""The runtime stays inside a plan: refused before loading, allocated as planned, trimmed where memory runs short."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

from edgellm.memory.plan import DoesNotFit, MemoryPlan, PlanError
from edgellm.memory.stored import plan_from_json
from edgellm.memory.units import MIB
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.bringup.planning import plan_here, plan_next


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_embd=128, n_ctx_train=32_768)


def planned(path: Path, draft: Path | None = None, **options: int) -> MemoryPlan:
    plan, _ = plan_here(path, draft, EngineOptions(**options))  # type: ignore[arg-type]
    assert plan is not None
    return plan


def test_what_does_not_fit_is_refused_before_anything_is_loaded(path: Path) -> None:
    needed = planned(path, n_ctx=8192).required_bytes
    with pytest.raises(DoesNotFit, match="would fit"):
        load(path, options=EngineOptions(n_ctx=8192, kv="f16", budget_bytes=needed * 93 // 100))
    with load(path, options=EngineOptions(n_ctx=8192, kv="f16", budget_bytes=needed)) as engine:
        assert engine.backend.n_ctx == 8192


def test_a_short_budget_trims_what_was_left_open_and_says_so(path: Path) -> None:
    needed = planned(path).required_bytes
    with load(path, options=EngineOptions(budget_bytes=needed - 2 * MIB)) as engine:
        assert engine.plan is not None
        assert engine.plan.required_bytes <= needed - 2 * MIB
        assert any("to fit" in warning for warning in engine.warnings)
        assert list(ChatSession(engine).reply("the hat", max_tokens=4))


def test_the_engine_allocates_what_the_plan_says(path: Path) -> None:
    plan = planned(path, path, n_ctx=2048, n_draft=3)
    own = plan.settings.drafter
    assert own is not None
    window = replace(plan, settings=replace(plan.settings, drafter=replace(own, n_ctx=512, kv="q8_0")))
    with load(path, path, EngineOptions(), plan=window) as engine:
        assert engine.settings.target == engine.backend.settings  # type: ignore[attr-defined]
        assert engine.backend.max_outputs == 4
        assert engine.n_draft == 3
        backend = engine.controller.model.backend  # type: ignore[union-attr]
        assert (backend.n_ctx, backend.settings.kv) == (512, "q8_0")


def test_a_plan_of_smaller_files_is_refused(path: Path, smollm2_path: Path) -> None:
    with pytest.raises(PlanError, match="plan again"):
        load(smollm2_path, plan=planned(path))


def test_a_plan_runs_on_another_day_only_where_there_is_room(path: Path) -> None:
    plan = plan_from_json(json.loads(json.dumps(planned(path).to_json())))
    with pytest.raises(DoesNotFit, match="end other programs"):
        load(path, options=EngineOptions(budget_bytes=plan.process_bytes * 85 // 100), plan=plan)
    with load(path, plan=plan) as engine:
        assert engine.settings == plan.settings


def test_the_next_rung_is_smaller_until_nothing_is_left(path: Path) -> None:
    plan: MemoryPlan | None = planned(path, path)
    sizes = []
    while plan is not None:
        sizes.append(plan.process_bytes)
        plan = plan_next(path, path, EngineOptions(), plan)
    assert len(sizes) > 3
    assert sizes == sorted(set(sizes), reverse=True)


SHORT = """
import json, resource, sys
from pathlib import Path
from edgellm.runtime import ChatSession, load
from edgellm.runtime.backends.llama_process import kernels
kernels()
held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
limit = held + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
with load(sys.argv[1]) as engine:
    text = "".join(ChatSession(engine).reply("Say hello.", max_tokens=8))
    print(json.dumps({"text": text, "warnings": engine.warnings, "plan": engine.plan.process_bytes}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits data by RLIMIT_DATA")
def test_an_allocation_that_fails_is_followed_by_the_next_rung(smollm2_path: Path) -> None:
    first = planned(smollm2_path)
    weights = first.lines[0].n_bytes
    cache = next(line.n_bytes for line in first.lines if line.name == "target cache")
    room = weights + cache + 50 * MIB  # not enough for what comes on top of the cache in f16
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(smollm2_path), str(room)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["text"]
    assert told["plan"] < first.process_bytes
    assert any("not enough memory" in warning and "instead" in warning for warning in told["warnings"])
