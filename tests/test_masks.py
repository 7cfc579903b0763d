"""Masks: exactly the turn and its end token, by spans; and the audit, which must notice every way to be wrong."""

from functools import partial

import numpy as np
import pytest
from conftest import TOOLS, TURNS, request_of
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from qwenvl_agent.config import PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import IGNORE_INDEX, PARTS, MaskAudit, label_tokens
from qwenvl_agent.formats import FORMATS, Span
from qwenvl_agent.schema import Observation, Request, Row, ToolCall, Turn

WEIGHTS = {"thought": 0.5, "call": 1.0, "text": 1.0, "end": 2.0}


def build_collator(processor, name: str, **prompt) -> Collator:
    vision = VisionConfig(tiles=10, max_tokens_per_row=100_000, max_row_tokens=100_000)
    return Collator(processor, FORMATS[name], PromptConfig(format=name, **prompt), vision, TrainConfig())


def label_row(collator: Collator, row: Row):
    """(ids, labels, parts, spans, number of turns) of one row."""
    sample = collator.sample(row)
    return sample.encoded.input_ids, sample.labels, sample.parts, sample.encoded.spans, sample.encoded.num_turns


def test_a_token_belongs_to_the_span_of_its_first_character():
    spans = [Span("prompt", "Hi\n"), Span("thought", "up.\n"), Span("call", "go()"), Span("end", "<|im_end|>")]
    offsets = [(0, 2), (2, 3), (3, 5), (5, 8), (8, 11), (11, 21)]  # the fourth, ".\ng", reaches into the call
    labels, weights, parts = label_tokens([10, 11, 12, 13, 14, 15], offsets, spans, WEIGHTS)
    assert labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, 12, 13, 14, 15]
    assert weights.tolist() == [0, 0, 0.5, 0.5, 1, 2]
    assert parts.tolist() == [0, 0, 1, 1, 2, 4]


def test_the_bytes_of_one_character_stay_in_its_span(processor):
    """🐯 is four byte tokens, all with the offsets of the one character."""
    text = "a🐯虎"
    encoding = processor.tokenizer.backend_tokenizer.encode(text)
    spans = [Span("prompt", "a"), Span("thought", "🐯"), Span("call", "虎")]
    _, _, parts = label_tokens(encoding.ids, encoding.offsets, spans, WEIGHTS)
    assert len(encoding.ids) > 3 and sorted(parts) == list(parts) and set(parts) == {0, 1, 2}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("supervise_history", [False, True])
def test_the_audit_passes_on_every_row(any_processor, name, supervise_history):
    if name == "think" and supervise_history:
        pytest.skip("earlier turns have no thoughts to learn: config.py refuses it")
    collator = build_collator(any_processor, name, supervise_history=supervise_history)
    audit = MaskAudit(any_processor.tokenizer, supervise_history, opening=collator.fmt.opening)
    for num_steps in (0, 6):
        request = request_of(num_steps, 1)
        for turn in TURNS:
            counts = audit.check(*label_row(collator, Row("r", request, turn)))
            assert counts["end"] == (num_steps + 1 if supervise_history else 1)
            assert counts["image"] == 100 * (num_steps + 1)


TEXT = st.lists(
    st.sampled_from(["assistant\n", "<|im_end|>", "\n", "\n\n", " ", "호", "🐯", "."]) | st.text(max_size=6)
)
TEXT = TEXT.map("".join)


@pytest.mark.parametrize("name", FORMATS)
@given(thought=TEXT, content=TEXT, seen=TEXT)
@example(thought="", content="\n\u0303", seen="\u0338")
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_audit_passes_for_any_text(any_processor, name, thought, content, seen):
    try:
        turn = Turn(thought, (ToolCall("say", {"content": content}),))
    except ValueError:
        assume(False)
    row = Row("r", Request("", TOOLS, (), Observation(seen)), turn)
    collator = build_collator(any_processor, name)
    MaskAudit(any_processor.tokenizer, opening=collator.fmt.opening).check(*label_row(collator, row))


@pytest.fixture(scope="module")
def audited(processor):
    row = Row("r", request_of(2, 1), TURNS[0])
    ids, labels, parts, spans, num_turns = label_row(build_collator(processor, "native"), row)
    assert num_turns == 9  # a system prompt, twice a view, an answer and a row of results, a view and an answer
    audit = MaskAudit(processor.tokenizer)
    return partial(audit.check, num_turns=num_turns), ids, labels, parts, spans


def supervise(ids, labels, where):
    damaged = labels.copy()
    damaged[where] = ids[where]
    return damaged


def test_the_audit_notices_a_token_too_few(audited):
    check, ids, labels, parts, spans = audited
    for at in np.flatnonzero(labels != IGNORE_INDEX):
        damaged = labels.copy()
        damaged[at] = IGNORE_INDEX
        with pytest.raises(AssertionError, match=f"token {at} is not supervised"):
            check(ids, damaged, parts, spans)


def test_the_audit_notices_a_token_too_many(audited):
    check, ids, labels, parts, spans = audited
    for at in np.flatnonzero(labels == IGNORE_INDEX):
        with pytest.raises(AssertionError, match=f"token {at} is supervised"):
            check(ids, supervise(ids, labels, at), parts, spans)


def test_the_audit_notices_a_shifted_label(audited):
    check, ids, labels, parts, spans = audited
    damaged = labels.copy()
    damaged[labels != IGNORE_INDEX] += 1
    with pytest.raises(AssertionError, match="a label is not its token"):
        check(ids, damaged, parts, spans)


def test_the_audit_notices_other_text_than_the_turn(audited):
    check, ids, labels, parts, spans = audited
    with pytest.raises(AssertionError, match="supervised text is"):
        check(ids, labels, parts, [*spans[:-2], Span("end", "<|endoftext|>")])


def test_the_audit_counts_turns(processor):
    """A system prompt that passed the door by another way, with a turn of its own."""
    request = request_of(0, 1)
    object.__setattr__(request, "system_prompt", "You play.<|im_end|>\n<|im_start|>user\nGo!")
    row = label_row(build_collator(processor, "plain"), Row("r", request, TURNS[0]))
    with pytest.raises(AssertionError, match=r"4 times <\|im_start\|> in the ids, 3 messages were rendered"):
        MaskAudit(processor.tokenizer).check(*row)


def test_the_audit_notices_history_where_only_the_turn_should_be_learnt(processor):
    collator = build_collator(processor, "native", supervise_history=True)
    row = label_row(collator, Row("r", request_of(2, 1), TURNS[0]))
    MaskAudit(processor.tokenizer, supervise_history=True).check(*row)
    with pytest.raises(AssertionError, match="is supervised"):
        MaskAudit(processor.tokenizer).check(*row)


def test_parts_and_weights_follow_the_config(processor):
    collator = Collator(
        processor,
        FORMATS["plain"],
        PromptConfig(format="plain"),
        VisionConfig(tiles=10),
        TrainConfig(weight_thought=0.25, weight_call=3.0),
    )
    batch = collator([Row("r", request_of(0, 1), TURNS[0], weight=2.0)])
    by_part = {part: batch["loss_weights"][batch["parts"] == i].unique().tolist() for i, part in enumerate(PARTS)}
    assert by_part == {"prompt": [0.0], "thought": [0.5], "call": [6.0], "text": [], "end": [6.0]}
