"""Where layers lie: what a device may hold, which is chosen, how many layers fit, and that nothing is lost by it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from planned_pair import DRAFTER, TARGET
from tiny_gguf import ARCHITECTURES, write_tiny

from edgellm.memory.buffer_sizes import BufferSizes
from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.device import Device, budget_device
from edgellm.memory.gguf import read_header
from edgellm.memory.placement import Accelerator, DeviceLimit, UnknownAccelerator, chosen, n_layers_on
from edgellm.memory.placing import placed
from edgellm.memory.plan import DEVICE_BYTES, PlanError, plan
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape, from_header
from edgellm.memory.solve import refusal, solve
from edgellm.memory.stored import plan_from_json
from edgellm.memory.units import MIB

GIB = 1024 * MIB
CARD = Accelerator("Vulkan0", "a card", "gpu", 6 * GIB, 8 * GIB)
INTEGRATED = Accelerator("Vulkan1", "graphics beside the cores", "integrated", 20 * GIB, 24 * GIB)
PLAYED = Accelerator("Vulkan2", "llvmpipe", "software", 30 * GIB, 30 * GIB)
FAR = Accelerator("RPC0", "127.0.0.1:50052", "worker", 40 * GIB, 40 * GIB)

BOTH = PlanRequest(n_ctx=2048, n_draft=4, keep_drafter=True, main_device="Vulkan0", draft_device="Vulkan0")


def machine(*devices: DeviceLimit) -> Device:
    here = budget_device(16 * GIB)
    return replace(here, bandwidth_bytes_s=24e9, macs_s=80e9, isa="x86", accelerators=devices)


def card(n_bytes: int, *, unified: bool = False, largest_bytes: int = 0) -> DeviceLimit:
    return DeviceLimit("Vulkan0", "a card", n_bytes, unified, largest_bytes=largest_bytes)


def layers(context: ContextSettings | None) -> int:
    assert context is not None
    return sum(n for _, n in context.placed)


def test_auto_takes_a_card_before_shared_memory_and_never_what_the_processor_plays() -> None:
    assert chosen("auto", [PLAYED, INTEGRATED, CARD, FAR]) == CARD
    assert chosen("auto", [PLAYED, INTEGRATED, FAR]) == INTEGRATED
    assert chosen("auto", [PLAYED, FAR]) is None
    assert chosen("auto", []) is None


def test_a_device_is_named_in_any_case_and_cpu_is_none_of_them() -> None:
    assert chosen("vulkan2", [CARD, PLAYED]) == PLAYED
    assert chosen("CPU", [CARD]) is None


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnknownAccelerator, match=r"'Vulkan7': there are cpu, Vulkan0, RPC0$") as refused:
        chosen("Vulkan7", [CARD, FAR])
    assert refused.value.exit_code == 2
    with pytest.raises(UnknownAccelerator, match=r"sees no GPU \(docs/gpu\.md"):
        chosen("Vulkan0", [])


def test_the_driver_keeps_a_share_of_a_device_and_a_full_one_offers_nothing() -> None:
    assert CARD.usable_bytes == 6 * GIB - int(0.05 * 8 * GIB)
    assert replace(CARD, total_bytes=GIB, free_bytes=GIB).usable_bytes == GIB - 128 * MIB
    assert replace(CARD, free_bytes=MIB).usable_bytes == 0
    assert [each.unified for each in (CARD, INTEGRATED, PLAYED, FAR)] == [False, True, True, False]


def test_layers_are_counted_as_the_engine_counts_the_head_last() -> None:
    assert [n_layers_on(n, 28) for n in (-1, 0, 5, 28, 29, 99)] == [29, 0, 5, 28, 29, 29]


def test_all_goes_where_all_fits_and_nothing_where_nothing_does() -> None:
    found = solve(TARGET, DRAFTER, machine(card(8 * GIB)), BOTH).plan
    assert found.fits
    assert (layers(found.settings.target), layers(found.settings.drafter)) == (29, 31)
    none = solve(TARGET, DRAFTER, machine(card(0)), BOTH).plan
    assert none.fits
    assert none.settings.target.placed == ()
    assert none.device_bytes("Vulkan0") == 0


@pytest.mark.parametrize("n_mib", [150, 300, 500, 700, 900, 1200, 1500])
def test_what_fits_is_placed_the_drafter_first_and_one_layer_more_would_not(n_mib: int) -> None:
    device = machine(card(n_mib * MIB))
    found = solve(TARGET, DRAFTER, device, BOTH).plan
    settings, taken = found.settings, found.device_bytes("Vulkan0")
    assert taken <= n_mib * MIB
    assert found.fits
    n_target, n_drafter = layers(settings.target), layers(settings.drafter)
    if n_target:
        assert n_drafter == 31
    more = replace(settings.target, placed=(("Vulkan0", n_target + 1),))
    if n_target < 29 and n_drafter == 31:
        wider = plan(TARGET, DRAFTER, replace(settings, target=more), device.limit, devices=device.accelerators)
        assert wider.device_bytes("Vulkan0") > n_mib * MIB


def test_a_small_drafter_is_left_to_the_processor_which_drafts_meanwhile_and_a_large_one_is_not() -> None:
    ask = replace(BOTH, draft_device="auto")
    small = solve(TARGET, DRAFTER, machine(card(8 * GIB)), ask).plan.settings
    assert (layers(small.target), layers(small.drafter)) == (TARGET.n_layers + 1, 0)
    large = solve(TARGET, TARGET, machine(card(8 * GIB)), ask).plan.settings
    assert layers(large.drafter) == TARGET.n_layers + 1
    nowhere = solve(TARGET, TARGET, machine(card(8 * GIB)), replace(ask, main_device="")).plan.settings
    assert (layers(nowhere.target), layers(nowhere.drafter)) == (0, 0)


def test_a_number_of_layers_that_was_asked_for_is_kept_and_refused_where_it_does_not_fit() -> None:
    ask = replace(BOTH, n_gpu_layers=20, n_draft_gpu_layers=0)
    found = solve(TARGET, DRAFTER, machine(card(4 * GIB)), ask).plan
    assert found.fits
    assert (layers(found.settings.target), layers(found.settings.drafter)) == (20, 0)
    short = solve(TARGET, DRAFTER, machine(card(300 * MIB)), ask)
    assert not short.plan.fits
    assert layers(short.plan.settings.target) == 20
    said = refusal(short)
    assert "of Vulkan0, which has 300.0 MiB for it: choose fewer --gpu-layers, or leave them to the plan" in said


def test_shared_memory_counts_as_the_machines_and_a_cards_does_not() -> None:
    apart = solve(TARGET, None, machine(card(8 * GIB)), BOTH).plan
    shared = solve(TARGET, None, machine(card(8 * GIB, unified=True)), BOTH).plan
    on_card = apart.device_bytes("Vulkan0") - DEVICE_BYTES  # what a card's driver keeps there
    assert shared.device_bytes("Vulkan0") == on_card > TARGET.weight_bytes // 2
    assert apart.total_bytes + on_card <= shared.total_bytes <= apart.total_bytes + 1.1 * on_card


def shape_of(path: Path, architecture: str, **sizes: object) -> ModelShape:
    return from_header(read_header(write_tiny(path, architecture, **sizes)))  # type: ignore[arg-type]


def moved(sizes: BufferSizes) -> tuple[int, int]:
    return sum(each.weights_bytes for each in sizes.devices), sum(each.kv_bytes for each in sizes.devices)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3moe", "lfm2", "falcon-h1", "deepseek2"])
def test_what_leaves_the_processor_is_on_the_devices(architecture: str, tied: bool, tmp_path: Path) -> None:
    """Weights and caches are cut without a rest; a tied embedding alone is there twice."""
    assert architecture in ARCHITECTURES
    shape = shape_of(tmp_path / "model.gguf", architecture, n_layers=8, tied=tied)
    whole = estimate(shape, ContextSettings(1024, 32, 5))
    twice = shape.tied[1] if shape.tied else 0
    for parts in ((9,), (8,), (4,), (1,), (3, 6), (2, 1), (1, 1, 1)):
        where = tuple((f"Vulkan{i}", n) for i, n in enumerate(parts))
        cut = estimate(shape, ContextSettings(1024, 32, 5, placed=where))
        weights, kv = moved(cut)
        assert cut.weights_bytes + weights == pytest.approx(whole.weights_bytes + twice, abs=4096), parts
        assert cut.kv_bytes + kv == pytest.approx(whole.kv_bytes, abs=64), parts
        assert [each.device for each in cut.devices] == [name for name, _ in where]
        assert all(0 < each.compute_bytes <= whole.compute_bytes for each in cut.devices)
        assert 0 < cut.compute_bytes <= whole.compute_bytes


def test_a_window_makes_layers_of_different_sizes_and_each_lies_where_it_is_placed(tmp_path: Path) -> None:
    shape = shape_of(tmp_path / "model.gguf", "gemma3", n_layers=7, window=64)  # the sixth sees everything
    settings = ContextSettings(4096, 32, 1)
    with_it, without = (estimate(shape, replace(settings, placed=(("Vulkan0", n),))) for n in (3, 2))
    assert with_it.devices[0].kv_bytes > 5 * without.devices[0].kv_bytes


def test_a_head_that_the_device_cannot_address_stays(tmp_path: Path) -> None:
    for tied in (True, False):
        shape = shape_of(tmp_path / f"{tied}.gguf", "llama", n_vocab=20_000, tied=tied)
        head = 20_000 * 64 * 4
        all_there = ContextSettings(512, 32, 5, placed=(("Vulkan0", 5),))
        goes, twice, stays = (
            estimate(shape, replace(all_there, largest_bytes=n)) for n in (64 * MIB, 32 * MIB, head - 1)
        )
        assert goes.devices[0].weights_bytes - stays.devices[0].weights_bytes == pytest.approx(head, abs=4096)
        assert stays.weights_bytes == pytest.approx(goes.weights_bytes + (0 if tied else head), abs=4096)
        assert twice.weights_bytes == stays.weights_bytes + (head if tied else 0)
        assert stays.compute_bytes > goes.compute_bytes
    device = machine(card(GIB, largest_bytes=128 * MIB))
    settings = solve(TARGET, None, device, replace(BOTH, draft_device="")).plan.settings
    assert placed(settings, TARGET, None, device, BOTH).target.largest_bytes == 128 * MIB


def test_a_plan_with_devices_is_the_same_when_it_is_read_again() -> None:
    for limit in (card(8 * GIB), card(500 * MIB, unified=True, largest_bytes=128 * MIB), card(0)):
        made = solve(TARGET, DRAFTER, machine(limit), BOTH).plan
        assert plan_from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("placed", [["Vulkan0", -1]]), ("placed", [["Vulkan0", 10**9]]), ("placed", [["Vulkan0", 1.5]]),
        ("placed", [["Vulkan0", True]]), ("placed", [[7, 3]]), ("placed", [["Vulkan0"]]), ("placed", 3),
        ("placed", [["Vulkan0\0", 3]]), ("placed", "Vulkan0"), ("largest_bytes", -1), ("largest_bytes", "all"),
        ("devices", [{"name": "Vulkan0"}]), ("devices", [7]), ("devices", 7),
        ("devices", [{"name": "Vulkan0", "description": "", "usable_bytes": -1, "unified": False}]),
        ("devices", [{"name": "Vulkan0", "description": "", "usable_bytes": 1, "unified": "no"}]),
        ("devices", [{"name": None, "description": "", "usable_bytes": 1, "unified": True}]),
    ],
)  # fmt: skip
def test_a_stored_placement_that_cannot_be_is_damage(entry: str, value: object) -> None:
    data = solve(TARGET, DRAFTER, machine(card(8 * GIB)), BOTH).plan.to_json()
    with pytest.raises(PlanError, match="damaged"):
        plan_from_json(data | {entry: value})
    if entry != "devices":
        with pytest.raises(PlanError, match="damaged"):
            plan_from_json(data | {"drafter_settings": data["drafter_settings"] | {entry: value}})


def test_a_plan_of_before_there_were_devices_is_read() -> None:
    data = solve(TARGET, DRAFTER, machine()).plan.to_json()
    for key in ("placed", "largest_bytes", "devices"):
        del data[key]
        data["drafter_settings"].pop(key, None)
    read = plan_from_json(data)
    assert read.devices == ()
    assert asdict(read.settings.target)["placed"] == ()
