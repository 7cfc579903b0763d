"""The collator: the processor's own ids, pixels and positions; whole pictures and steps; prompts that begin rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TURNS, picture, request_of, tiny_processor
from PIL import Image

from qwenvl_agent.config import PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator, expand_pads
from qwenvl_agent.data.pixels import load_pixels, patchify, pixel_values
from qwenvl_agent.families.mrope import token_positions
from qwenvl_agent.formats import FORMATS, Span
from qwenvl_agent.prompt import Rendered, render_row
from qwenvl_agent.schema import Observation, Picture, Request, Row

LARGE = {"max_tokens_per_row": 100_000, "max_row_tokens": 100_000}


def build_collator(processor, name: str = "native", **vision) -> Collator:
    return Collator(
        processor, FORMATS[name], PromptConfig(format=name), VisionConfig(**(LARGE | vision)), TrainConfig()
    )


def rows_of(*num_steps: int, num_pictures: int = 1, size: int = 160) -> list[Row]:
    return [
        Row(f"row{i}", request_of(steps, num_pictures, size), TURNS[i % len(TURNS)], source=f"data.jsonl:{i + 1}")
        for i, steps in enumerate(num_steps)
    ]


def ids_of(batch: dict, i: int) -> list[int]:
    return batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_equals_what_the_real_processor_makes(auto_processor, real_processor, name):
    collator = build_collator(real_processor, name)
    for row in rows_of(0, 2, 1, num_pictures=2, size=320):
        batch = collator([row])
        rendered = render_row(row.request, row.turn, FORMATS[name])
        expected = auto_processor(
            text=[rendered.text], images=[p.open() for p in rendered.pictures], return_tensors="pt", truncation=False
        )
        batch["pixel_values"] = pixel_values(batch)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "pixel_values"):
            assert torch.equal(batch[key], expected[key].to(batch[key].dtype)), key


@pytest.mark.parametrize("width, height", [(64, 96), (100, 300), (333, 97)])
def test_pixels_equal_the_image_processors_to_the_bit(processor, width, height):
    """Its own resize included, where the budget lets it decide the size."""
    collator = build_collator(processor, min_tokens_per_image=4)
    request = Request("", (), (), Observation("", (picture(width, height), picture(height, width, seed=1))))
    batch = collator([Row("r", request, TURNS[0])])
    expected = processor.image_processor([p.open() for p in request.observation.pictures], return_tensors="pt")
    assert torch.equal(pixel_values(batch), expected["pixel_values"])
    assert torch.equal(batch["image_grid_thw"], expected["image_grid_thw"])


def test_pixels_at_other_means_and_sizes_equal_the_image_processors(processor):
    image_processor = type(processor.image_processor)(
        patch_size=16, merge_size=processor.geometry.merge_size, image_mean=[0.1, 0.5, 0.7], image_std=[0.2, 0.3, 0.4]
    )
    images = [load_pixels(picture(300, 200, seed), 64, 96) for seed in range(3)]
    assert images[0].dtype == torch.uint8 and images[0].shape == (3, 64, 96)
    expected = image_processor(images, do_resize=False, return_tensors="pt")
    batch = patchify(images, image_processor)
    assert torch.equal(pixel_values(batch), expected["pixel_values"])
    assert 8 * batch["patches"].nbytes == expected["pixel_values"].nbytes


def save_picture(path, kind: str) -> None:
    """Noise of 70 x 40 in one of the forms that are read each in its own way."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    if kind == "jpeg":
        image.convert("RGB").save(path, "JPEG")
    else:
        image.convert("RGB").convert(kind).save(path, "PNG")


@pytest.mark.parametrize("kind", ["RGB", "P", "L", "1", "jpeg"])
def test_a_files_pixels_are_those_that_pillow_reads(tmp_path, kind):
    path = tmp_path / "picture.png"
    save_picture(path, kind)
    with Image.open(path) as image:
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(load_pixels(Picture(70, 40, str(path)), 40, 70).permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    "cut, size, message", [(0.5, (70, 40), "not a readable picture"), (1, (40, 70), "recorded as")]
)
def test_a_broken_or_changed_file_is_an_error(tmp_path, cut, size, message):
    path = tmp_path / "picture.png"
    save_picture(path, "RGB")
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"picture.png is .*{message}"):
        load_pixels(Picture(*size, str(path)), 64, 64)


@pytest.fixture(scope="module", params=[1, 2])
def merge_model(request):
    """(processor, Qwen3-VL of a few weights), at 1x1 and 2x2 patches a token."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = small | {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 600}
    vision = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    vision |= {"spatial_merge_size": request.param, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    return tiny_processor(request.param), model


def mixed_rows() -> list[Row]:
    """0 to 3 pictures of different shapes, next to each other and apart."""
    shapes = [[], [(96, 64)], [(64, 160), (96, 96)], [(160, 64), (64, 64), (96, 128)]]
    rows = [
        Row(str(i), replace(request_of(0, 0), observation=Observation("see", [picture(*s) for s in sizes])), TURNS[i])
        for i, sizes in enumerate(shapes)
    ]
    return [*rows, Row("history", request_of(3, 1, 96), TURNS[0])]


def test_training_positions_equal_the_models(merge_model):
    processor, model = merge_model
    batch = build_collator(processor, min_tokens_per_image=1)(mixed_rows())
    expected, _ = model.model.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"], attention_mask=batch["attention_mask"]
    )
    assert torch.equal(batch["position_ids"][1:], expected)
    for text, mask in zip(batch["position_ids"][0], batch["attention_mask"], strict=True):
        assert text.tolist() == [*range(int(mask.sum())), *[0] * int((mask == 0).sum())]


def test_generation_positions_equal_those_of_generate(merge_model):
    processor, model = merge_model
    batch = build_collator(processor, min_tokens_per_image=1).encode_prompt([row.request for row in mixed_rows()])
    expected = model._prepare_position_ids_for_generation(batch["input_ids"], dict(batch, position_ids=None))
    assert torch.equal(batch["position_ids"], expected)


def test_positions_of_a_picture_between_words():
    is_image = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert token_positions(is_image, [(2, 3)]).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_the_prompts_ids_begin_the_rows_ids(any_processor, name):
    collator = build_collator(any_processor, name, tiles=10)
    rows = rows_of(0, 1, 2, 3, 4, 6)
    training, generation = collator(rows), collator.encode_prompt([row.request for row in rows])
    for i in range(len(rows)):
        prompt = ids_of(generation, i)
        assert prompt == ids_of(training, i)[: len(prompt)]
        assert (training["labels"][i][: len(prompt)] == -100).all()
    assert torch.equal(training["patches"], generation["patches"])


def test_training_pads_right_and_generation_left(processor):
    collator = build_collator(processor, tiles=10)
    rows = rows_of(0, 2)
    training, generation = collator(rows), collator.encode_prompt([row.request for row in rows])
    pad = processor.tokenizer.pad_token_id
    short, columns = len(ids_of(training, 0)), training["input_ids"].shape[1]
    assert training["input_ids"][0, short:].tolist() == [pad] * (columns - short)
    assert (generation["input_ids"][:, -1] != pad).all() and generation["input_ids"][0, 0] == pad
    assert (training["labels"][0, short:] == -100).all() and (training["loss_weights"][0, short:] == 0).all()
    assert training["row_ids"] == ["row0", "row1"] and "labels" not in generation


def test_a_batch_without_pictures_has_no_pixels(processor):
    batch = build_collator(processor)([Row("r", request_of(0, 0), TURNS[0])])
    assert "patches" not in batch and "image_grid_thw" not in batch
    assert batch["mm_token_type_ids"].sum() == 0


def test_every_picture_has_its_tokens(processor):
    batch = build_collator(processor, tiles=10)(rows_of(0, 3, 1, num_pictures=2))
    per_token = processor.geometry.merge_size**2
    assert batch["mm_token_type_ids"].sum() == batch["image_grid_thw"].prod(1).sum() // per_token == 14 * 100


def test_an_image_of_more_than_2048_tokens_is_not_truncated(any_processor):
    side = any_processor.geometry.token_px * 50
    collator = build_collator(any_processor, max_tokens_per_image=2500)
    any_processor.tokenizer.backend_tokenizer.enable_truncation(max_length=100)
    batch = collator([Row("r", request_of(0, 1, side), TURNS[0])])
    expected = 2500 if any_processor.name == "real" else 1024  # the tiny geometry's own limit
    assert batch["mm_token_type_ids"].sum() == expected


def test_over_the_vision_budget_the_oldest_pictures_go_and_are_counted(processor):
    collator = build_collator(processor, tiles=10, max_tokens_per_row=200)
    batch = collator(rows_of(0, 3))
    assert batch["mm_token_type_ids"].sum(1).tolist() == [100, 200]
    assert batch["reductions"] == collator.reductions == {"images": 2}
    assert collator(rows_of(0))["reductions"] == {}


def test_over_the_token_budget_the_oldest_steps_go_and_are_counted(processor):
    rows = rows_of(3)
    full = build_collator(processor, tiles=10)(rows)
    whole = full["input_ids"].shape[1]
    collator = build_collator(processor, tiles=10, max_row_tokens=whole - 1)
    batch = collator(rows)
    assert collator.reductions == {"turns": 1} and batch["mm_token_type_ids"].sum() == 300
    assert ids_of(batch, 0)[-60:] == ids_of(full, 0)[-60:]


@pytest.mark.parametrize("limits", [{"max_row_tokens": 50}, {"max_tokens_per_row": 99}, {"max_tokens_per_image": 64}])
def test_a_row_that_cannot_fit_is_an_error_with_its_place(processor, limits):
    with pytest.raises(ValueError, match="^data.jsonl:1: .*; raise "):
        build_collator(processor, tiles=10, **limits)(rows_of(2))


def test_a_picture_that_is_gone_is_an_error_with_its_place(processor, tmp_path):
    request = Request("", (), (), Observation("", (Picture(160, 160, path=str(tmp_path / "gone.png")),)))
    with pytest.raises(ValueError, match="^data.jsonl:7: .*gone.png does not exist: .*add the file"):
        build_collator(processor, tiles=10)([Row("r", request, TURNS[0], source="data.jsonl:7")])


def test_pads_are_expanded_in_prompts_only():
    spans = (Span("prompt", "a<|image_pad|>b<|image_pad|>"), Span("call", "c"))
    rendered = Rendered(spans, (picture(), picture()), len(spans), 2)
    assert [s.text for s in expand_pads(rendered, [1, 2], "<|image_pad|>")] == [
        "a<|image_pad|>b<|image_pad|><|image_pad|>",
        "c",
    ]
    with pytest.raises(AssertionError, match="1 of 3 pictures have no place"):
        expand_pads(rendered, [1, 2, 3], "<|image_pad|>")
