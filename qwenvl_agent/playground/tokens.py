"""A model's prompt and turn token by token, each coloured by its weight in training."""

from html import escape

from qwenvl_agent.curation.samples import legend_html, tokens_html
from qwenvl_agent.playground.session import Player, Session
from qwenvl_agent.schema import Row


def prompt_html(session: Session, player: Player) -> str:
    """The player's prompt and its own answer token by token, each coloured by its weight in training."""
    if player.collator is None:
        return "<div class='play'><p class='soft'>Only a model has a prompt.</p></div>"
    answer = session.ask(player)
    best = session.best()
    # An answer that could not be read is no turn that could be taught.
    turn, whose = (answer.turn, player.name) if not answer.error else (best, "the oracle")
    if turn is None:
        raise ValueError(f"the answer of {player.name} cannot be read, and there is no oracle's: no turn has weights")
    row = Row("played", session.request_of(player), turn, source="this turn")
    sample = player.collator.sample(row)
    facts = f"{len(sample.labels)} tokens, {int((sample.weights > 0).sum())} with weight; the turn is of {whose}."
    return (
        f"<div class='play'><p>{legend_html()}</p><p class='soft'>{escape(facts)} Grey is prompt, which weighs nothing; the stronger "
        f"the colour, the higher the weight in this run's training. Hover for a token's id and weight.</p>"
        f"<pre class='tokens'>{tokens_html(sample)}</pre></div>"
    )
