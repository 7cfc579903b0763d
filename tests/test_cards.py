"""The table of what fits which card: its plans are the planner's, and its speeds are predictions by hand."""

import json
from pathlib import Path

import pytest

from qwenvl_agent.cli import plan
from qwenvl_agent.config import load_config
from qwenvl_agent.planning.cards import (
    CARDS,
    COMPILED,
    METHODS,
    MODELS,
    OPTIONS,
    SHARE,
    as_markdown,
    predicted_tokens_per_s,
    table,
    verdicts,
)
from qwenvl_agent.planning.vram import RowShape, budget_row, find_architecture, plan_memory

CONFIG = Path(__file__).parents[1] / "configs" / "safari_2b.json"


@pytest.fixture(scope="module")
def found():
    return verdicts(load_config(CONFIG), budget_row)


def test_every_model_method_option_and_card_has_a_verdict(found):
    assert len(found) == len(MODELS) * len(METHODS) * len(OPTIONS) * len(CARDS)
    heading, *lines = table(found)
    assert len(lines) == len(found) // len(CARDS) and {len(line) for line in lines} == {len(heading)}


def test_the_documents_table_is_the_commands(found):
    assert as_markdown(table(found)) in (CONFIG.parents[1] / "docs" / "MEMORY.md").read_text(encoding="utf-8")


def test_eight_bits_let_full_fine_tuning_of_2b_fit_24_gb_and_no_smaller_card(found):
    full = [v for v in found if (v.model, v.method) == (MODELS[0], "full")]
    assert [v.card.gb for v in full if v.fits and "8-bit" in v.option] == [24, 40, 80]
    assert [v.card.gb for v in full if v.fits and v.option == "as few layers again as needed"] == [40, 80]


def test_a_verdict_is_the_planners(found):
    config = load_config(CONFIG, ["model.gradient_checkpointing=true"])
    arch = find_architecture(config.model.path)
    one = next(v for v in found if (v.model, v.method, v.card.gb) == (MODELS[0], "qlora", 24) and v.recomputed == 28)
    assert one.peak_bytes == plan_memory(config, arch, budget_row(config, arch)).total and one.fits


def test_what_is_computed_again_follows_the_card(found):
    few = "as few layers again as needed"
    chosen = [v.recomputed for v in found if (v.model, v.method, v.option) == (MODELS[2], "lora", few)]
    assert chosen == sorted(chosen, reverse=True) and chosen[-1] == 0
    assert not any(v.fits for v in found if v.model == MODELS[2] and v.method == "full")


def test_speed_is_the_models_operations_at_a_share_of_the_published_rate():
    """2B LoRA without adapters' own work to speak of: two products for each weight and token, and the recomputed third."""
    config = load_config(CONFIG, ["model.method=lora", "model.lora_rank=1", "model.gradient_checkpointing=false"])
    arch, row = find_architecture(config.model.path), RowShape(1000, 0, 0, num_images=0)
    matrices, attention = arch.matrices, 12 * arch.layers * arch.q * 1000
    by_hand = SHARE * 989.4e12 / (4 * matrices + attention)
    assert predicted_tokens_per_s(config, arch, row, CARDS[-1]) == pytest.approx(by_hand, rel=0.01)


def test_packs_compute_what_rows_begin_with_once_and_compiled_blocks_are_faster():
    settings = ["model.method=lora", "model.lora_rank=1", "model.gradient_checkpointing=false", "model.attention=sdpa"]
    plain, packs, compiled = (
        load_config(CONFIG, [*settings, *more])
        for more in ([], ["train.pack_tokens=4096", "train.batch_size=4"], ["model.compile=true"])
    )
    arch, row = find_architecture(plain.model.path), RowShape(1000, 0, 0, num_images=0)
    rate, packed, faster = (predicted_tokens_per_s(config, arch, row, CARDS[-1]) for config in (plain, packs, compiled))
    assert faster == pytest.approx(COMPILED * rate) and pytest.approx(1.157, abs=1e-3) == COMPILED
    matrices, attention = (
        arch.matrices,
        12 * arch.layers * arch.q,
    )  # of 4 rows 3 do not compute 500 of their 1,000 tokens
    by_hand = 4 * (4e3 * matrices + attention * 1e6) - 3 * (2e3 * matrices + attention * 0.25e6)
    assert packed == pytest.approx(SHARE * 989.4e12 * 4000 / by_hand, rel=0.01)


def test_the_command_says_that_nothing_is_measured(capsys):
    assert plan.main(["--config", str(CONFIG), "--cards"]) == 0
    assert "Nothing of this is measured" in capsys.readouterr().out
    assert plan.main(["--config", str(CONFIG), "--cards", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 270


def test_a_curriculum_has_no_table():
    path = str(CONFIG).replace("safari_2b", "safari_2b_curriculum")
    with pytest.raises(ValueError, match="--cards with stages"):
        plan.main.__wrapped__(["--config", path, "--cards"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cards", "--row-tokens", "100"], "--cards with --row-tokens"),
        (["--cards", "--gpus", "2"], "--cards with --gpus"),
        (["--cards", "--model-config", "x"], "--cards with --model-config"),
        (["--image-tokens", "0"], "--image-tokens without --row-tokens"),
        (["--measured", "runs/x"], "--measured without stages"),
    ],
)
def test_options_that_would_change_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan.main.__wrapped__(["--config", str(CONFIG), *options])
