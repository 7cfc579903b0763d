"""Our generation loop against plain forwards and transformers' own `generate`."""

import pytest
import torch
from PIL import Image
from tiny_run import save_tiny_checkpoint

from qwenvl_agent.config import ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.decoding import RoomyLayer, cast_weights, choose, count_shared, decode, share_prefix
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.call import model_inputs
from qwenvl_agent.schema import Observation, Picture, Request, Tool

TOOLS = (Tool("move", "Walk.", {"type": "object", "properties": {"direction": {"type": "string"}}}),)
NUM_TOKENS = 12


def request(colour: str, text: str = "Where?", width: int = 64) -> Request:
    picture = Picture.from_image(Image.new("RGB", (width, 64), colour))
    return Request("You walk.", TOOLS, (), Observation(text, (picture,)))


REQUESTS = [request("red"), request("blue", "Where is the animal of the mission?", width=128), request("green")]
REQUESTS += [request("white", "Go on, go on, go on"), request("black")]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def collator(base) -> Collator:
    vision_cfg = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    processor = build_processor(ModelConfig(path=base, method="full", dtype="float32"), vision_cfg)
    return Collator(processor, FORMATS["native"], PromptConfig(), vision_cfg, TrainConfig())


@pytest.fixture(scope="module")
def model(base):
    """Its layers count for more than its embedding, or it would repeat its last token for ever."""
    model = build_model(ModelConfig(path=base, method="full", dtype="float32", autocast=False), "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    return model


def inputs_of(collator: Collator, requests) -> dict:
    return model_inputs(collator.encode_prompt(requests))


@pytest.fixture(scope="module")
def one_by_one(model, collator) -> list[list[int]]:
    """What transformers' `generate` writes greedily for each request alone; a random model has no end."""
    written = []
    for one in REQUESTS:
        inputs = inputs_of(collator, [one])
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None, pad_token_id=0)
        written.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return written


def test_a_batch_writes_what_generate_writes_one_by_one(model, collator, one_by_one, monkeypatch):
    monkeypatch.setattr(RoomyLayer, "ROOM", 2)
    made = decode(model, inputs_of(collator, REQUESTS), end_id=-1, max_new_tokens=NUM_TOKENS)
    assert made == one_by_one
    assert len({tuple(ids) for ids in made}) == len(REQUESTS) and len(set(made[0])) > 3  # else it would prove little


@pytest.mark.parametrize("leave_below", [0.0, 0.9])
def test_rows_end_each_at_its_end_and_the_others_do_not_notice(model, collator, one_by_one, monkeypatch, leave_below):
    sizes, lengths = [], []
    select, forward = RoomyLayer.batch_select_indices, model.forward
    monkeypatch.setattr(RoomyLayer, "batch_select_indices", lambda self, i: (sizes.append(len(i)), select(self, i)))
    monkeypatch.setattr(model, "forward", lambda **inputs: (lengths.append(1), forward(**inputs))[1])
    monkeypatch.setattr("qwenvl_agent.inference.decoding.LEAVE_BELOW", leave_below)
    inputs = inputs_of(collator, REQUESTS)
    for end_id in {ids[3] for ids in one_by_one}:  # ends at least one row in its midst
        wanted = [ids[: ids.index(end_id) + 1] if end_id in ids else ids for ids in one_by_one]
        lengths.clear()
        assert decode(model, inputs, end_id=end_id, max_new_tokens=NUM_TOKENS) == wanted
        assert len(lengths) == 1 + max(map(len, wanted))  # the common beginning, then one forward a token
    assert (sizes != [] and min(sizes) < len(REQUESTS)) == (leave_below > 0)


def test_the_batch_ends_with_its_last_row(model, collator, one_by_one, monkeypatch):
    """Also when the rows that ended before have not left."""
    monkeypatch.setattr("qwenvl_agent.inference.decoding.LEAVE_BELOW", 0.0)
    ends = iter([[7, 1, 1], [1, 7, 1], [2, 2, 7], [3, 3, 3]])  # rows 0, 1, 2 end one after another
    monkeypatch.setattr("qwenvl_agent.inference.decoding.choose", lambda logits, *_: torch.tensor(next(ends)))
    made = decode(model, inputs_of(collator, REQUESTS[:3]), end_id=7, max_new_tokens=NUM_TOKENS)
    assert made == [[7], [1, 7], [1, 1, 7]]


def test_all_ended_is_the_end(model, collator, one_by_one):
    end_id = one_by_one[0][0]
    made = decode(model, inputs_of(collator, REQUESTS[:1]), end_id=end_id, max_new_tokens=NUM_TOKENS)
    assert made == [[end_id]]


def test_the_prefix_is_computed_once_and_the_logits_are_those_of_a_plain_forward(model, collator):
    inputs = inputs_of(collator, REQUESTS)
    with torch.no_grad():
        rest, cache = share_prefix(model, inputs)
        num_shared = cache.get_seq_length()
        assert num_shared == count_shared(inputs) > 100
        assert rest["input_ids"].shape[1] == inputs["input_ids"].shape[1] - num_shared
        logits = model(**rest, past_key_values=cache, use_cache=True).logits[:, -1]
        plain = model(**inputs, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, plain, atol=2e-4, rtol=0)


def test_the_common_beginning_ends_at_a_picture_or_a_difference(collator):
    def count(*requests):
        return count_shared(collator.encode_prompt(requests))

    def num_before_picture(one):
        return collator.encode_prompt([one])["mm_token_type_ids"][0].tolist().index(1)

    assert count(REQUESTS[0]) == 0
    assert count(REQUESTS[0], REQUESTS[2]) == num_before_picture(REQUESTS[0])
    other = Request("You run.", TOOLS, (), REQUESTS[0].observation)
    assert 0 < count(REQUESTS[0], other) < 20
    blind = Request("You walk.", TOOLS, (), Observation("Where?"))
    assert count(blind, blind) == collator.encode_prompt([blind])["input_ids"].shape[1] - 1


def test_weights_cast_once_give_the_logits_of_weights_cast_each_time(base, collator):
    model = build_model(ModelConfig(path=base, method="full", dtype="float32", autocast=True), "cpu")
    inputs, masters = inputs_of(collator, REQUESTS), dict(model.named_parameters())
    with torch.no_grad():
        wanted = model(**inputs, use_cache=False).logits
        with cast_weights(model):
            assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
            assert model.get_input_embeddings().weight.dtype == torch.float32
            assert torch.equal(model(**inputs, use_cache=False).logits, wanted)
    assert all(parameter is masters[name] for name, parameter in model.named_parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_under_autocast_keys_are_kept_as_attention_takes_them(base, collator):
    model = build_model(ModelConfig(path=base, method="full", dtype="float32", autocast=True), "cpu")
    inputs = inputs_of(collator, REQUESTS)
    with torch.no_grad():
        rest, cache = share_prefix(model, inputs)
        assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}
        logits = model(**rest, past_key_values=cache, use_cache=True).logits[:, -1]
        plain = model(**inputs, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, plain, atol=0.02, rtol=0)


def test_without_autocast_no_weight_is_cast(model):
    with cast_weights(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_row_with_a_draw_of_its_own_writes_the_same_alone_and_in_any_batch(model, collator):
    draws, settings = [5, 6, 7, 5, 9], {"end_id": -1, "max_new_tokens": NUM_TOKENS, "temperature": 0.7}
    alone = [
        decode(model, inputs_of(collator, [one]), draws=[draw], **settings)[0]
        for one, draw in zip(REQUESTS, draws, strict=True)
    ]
    assert decode(model, inputs_of(collator, REQUESTS), draws=draws, **settings) == alone
    assert decode(model, inputs_of(collator, REQUESTS), draws=[8, *draws[1:]], **settings)[1:] == alone[1:]
    assert decode(model, inputs_of(collator, REQUESTS[:1]), draws=[8], **settings) != alone[:1]


def test_a_number_cuts_the_distribution():
    shares = torch.tensor([[0.0, 0.25, 0.0, 0.75]])
    cuts = [choose(shares.log(), 1.0, [number]).item() for number in (0.0, 0.2, 0.26, 1 - 1e-16)]
    assert cuts == [1, 1, 3, 3]
