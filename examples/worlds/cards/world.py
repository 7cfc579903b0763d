"""A hand of cards is laid in rising or in falling order, one card a turn; a wrong card ends the game. No grid, no map.

The environment is thirty lines, the world around it twenty. What an agent has to see are the numbers on the
cards; which card is wanted follows from them and from the mission.
"""

import itertools

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qwenvl_agent.worlds.gymnasium import GymnasiumWorld
from qwenvl_agent.worlds.world import Labels

CARD_PX = (32, 48)
INDEX_PX = 16
FONT = ImageFont.load_default(size=INDEX_PX)
SUITS = ("black", "red")
PLACES = "abcdefgh"


class Cards(gymnasium.Env):
    """Observation: the numbers that lie open, 0 for a card that was played. Action: the place of a card."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, num_cards: int, render_mode: str | None = None):
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(num_cards)
        self.observation_space = gymnasium.spaces.MultiDiscrete([10] * num_cards)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        num_cards = int(self.action_space.n)
        self.hand = self.np_random.choice(np.arange(1, 10), num_cards, replace=False)
        self.suits = self.np_random.integers(len(SUITS), size=num_cards)
        self.order = ("rising", "falling")[self.np_random.integers(2)]
        return self.hand.copy(), {"mission": f"Lay all cards in {self.order} order."}

    def wanted(self) -> int:
        """The place of the next card."""
        left = np.flatnonzero(self.hand)
        pick = np.argmin if self.order == "rising" else np.argmax
        return int(left[pick(self.hand[left])])

    def step(self, action):
        is_right = bool(self.hand.any()) and action == self.wanted()
        self.hand[action] = 0
        is_over = not is_right or not self.hand.any()
        return self.hand.copy(), float(is_right and is_over), is_over, False, {}

    def render(self):
        width, height = CARD_PX
        table = Image.new("RGB", (width * len(self.hand), height), "darkgreen")
        draw = ImageDraw.Draw(table)
        for place, (number, suit) in enumerate(zip(self.hand, self.suits, strict=True)):
            if number:
                left = place * width
                draw.rectangle((left, 0, left + width - 3, height - 3), fill="white")
                draw.text((left + INDEX_PX // 2, INDEX_PX // 2), str(number), SUITS[suit], FONT, anchor="mm")
                draw.regular_polygon((left + width // 2, height // 2 + 4, 7), 4, rotation=45, fill=SUITS[suit])
        return np.asarray(table)


def make_world(num_cards=5):
    return GymnasiumWorld(
        name="cards",
        make=lambda seed: Cards(num_cards, render_mode="rgb_array"),
        actions=list(PLACES[:num_cards]),
        tool="play",
        descriptions={"play": "Lay a card."},
        system_prompt=f"You hold {num_cards} cards, a to {PLACES[num_cards - 1]} from the left. Call play with the next one.",
        success=lambda episode: episode.total_reward > 0,
        state=lambda episode: {"cards_left": int(np.count_nonzero(episode.game.hand))},
        optimal_turns=lambda episode: num_cards,
        max_turns=num_cards + 1,
        oracle=oracle,
        rules={"num_cards": num_cards},
        labels=Labels(success="every card was laid in order", outcomes={"done_early": "laid a wrong card"}),
    )


def oracle(episode):
    """The next card, after a thought that reads the hand and then looks for each number in turn until one is there."""
    hand = [int(number) for number in episode.game.hand]
    read = ", ".join(f"{PLACES[place]} {number or 'none'}" for place, number in enumerate(hand))
    numbers = range(1, 10) if episode.game.order == "rising" else range(9, 0, -1)
    place = episode.game.wanted()
    missing = "".join(f" {number} no," for number in itertools.takewhile(lambda number: number != hand[place], numbers))
    return f"Cards {read}. Look{missing} {hand[place]} {PLACES[place]}.", [PLACES[place]]
