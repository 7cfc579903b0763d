"""TRL's chat template with our masks: learned is the last turn alone, and not the newline after it."""

GENERATION, END_GENERATION = "{%- generation -%}", "{%- endgeneration -%}"
END_TURN = "{{- '<|im_end|>\\n' }}"


def learn_last_turn(template: str) -> str:
    """A training template of TRL (1.16) in which the marks stand around the last message only, its newline outside.

    The text is the same: only what `return_assistant_tokens_mask` says of it changes.
    """
    before, _, rest = template.partition(GENERATION)
    turn, _, after = rest.partition(END_GENERATION)
    if turn.count(END_TURN) != 1:
        raise ValueError("TRL's template has changed: what it marks is not known; see benchmarks/requirements-trl.txt")
    learned = GENERATION + turn.replace(END_TURN, "{{- '<|im_end|>' }}") + END_GENERATION + "{{- '\\n' }}"
    return f"{before}{{%- if loop.last %}}{learned}{{%- else %}}{turn}{{%- endif %}}{after}"
