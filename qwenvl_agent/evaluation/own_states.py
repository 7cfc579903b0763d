"""The states that a policy comes to by itself, each with the turn that its world's oracle would take there (DAgger).

The policy plays, and what is recorded is what its teacher would have done in the same place. The teacher plays too where
the policy would learn nothing more: see `Taught`. Every state is recorded once, however often it was seen.
"""

import base64
import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl_agent.evaluation.rollout import Decision, calls_json, rollout
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.schema import Answer, Observation, Policy, ToolResult, Turn
from qwenvl_agent.worlds.recording import RowWriter, encode
from qwenvl_agent.worlds.world import RecordedTurn, World

MAX_VISITS = 2
"""Of one state in an episode; then the oracle leads out of it."""


@dataclass(frozen=True)
class StateRow:
    """A row of a dataset; `state` is equal for equal states of the same mission."""

    state: str
    pngs: list[bytes]
    row: dict


@dataclass
class PlayedEpisode:
    """The rows of one episode in their order, and what to count of it."""

    seed: int
    rows: list[StateRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    """By tool: states in which policy and oracle call it alike."""
    differed: Counter[str] = field(default_factory=Counter)
    """By tool: states in which one of them calls it, and the other does not, or otherwise."""
    error: str = ""
    """Of the world or the policy's server, which ended it."""

    def to_json(self) -> dict:
        rows = [[row.state, [base64.b64encode(png).decode() for png in row.pngs], row.row] for row in self.rows]
        return {**vars(self), "rows": rows}

    @classmethod
    def from_json(cls, values: dict) -> "PlayedEpisode":
        rows = [StateRow(state, [base64.b64decode(png) for png in pngs], row) for state, pngs, row in values["rows"]]
        counters = {key: Counter(values[key]) for key in ("counts", "agreed", "differed")}
        return cls(**{**values, "rows": rows, **counters})


def make_teacher(world: World, settings: Mapping[str, object]) -> Policy:
    """The oracle as one that can be asked in any state; ValueError if there is none."""
    teacher = world.make_reference(**settings)
    if teacher is None:
        raise ValueError(
            f"world {world.name} has no oracle that can be asked in a state to which another has come "
            "(World.make_reference), so nobody could say what is right there; let it learn from the missions that it wins "
            "(--attempts 4)"
        )
    return teacher


def play_own_states(
    world: World,
    policy: Policy,
    teacher: Policy,
    seeds: Sequence[int],
    *,
    oracle_share: float = 0.0,
    keep_agreed: float = 1.0,
    batch_size: int = 32,
    on_episode: Callable[[PlayedEpisode], None],
    on_record: Callable[[EpisodeRecord], None] | None = None,
) -> list[EpisodeRecord]:
    """One episode per seed; `on_episode` gets each with its rows, in the order of the seeds, `on_record` as they end.

    The oracle plays the turns that `Taught` names and of the others a share `oracle_share`. Of the states in which the
    policy calls the very same as the oracle, a share `keep_agreed` is recorded. Both are drawn by seed and turn alone.
    """
    taught = Taught(world, oracle_share, keep_agreed)
    waiting = deque(seeds)

    def end(record: EpisodeRecord) -> None:
        taught.end(record)
        while waiting and waiting[0] in taught.finished:
            on_episode(taught.finished.pop(waiting.popleft()))
        if on_record:
            on_record(record)

    return rollout(
        world.make_env,
        policy,
        seeds,
        batch_size=min(batch_size, world.max_envs or batch_size),
        reference=teacher,
        overrule=taught.overrule,
        on_turn=taught.on_turn,
        on_progress=end,
    )


class Taught:
    """Episodes in which the oracle says in every state what it would do, and takes over

    - where the policy's answer cannot be read, or calls nothing though the oracle would,
    - where its turn would lose the mission for good (`World.loses`: a false declaration),
    - at the third visit of a state, which nothing but the count of turns tells from before,
    - and in a share of all other turns.
    """

    def __init__(self, world: World, oracle_share: float, keep_agreed: float):
        self.world, self.oracle_share, self.keep_agreed = world, oracle_share, keep_agreed
        self.playing: dict[int, PlayedEpisode] = {}
        self.visits: dict[int, Counter[str]] = {}
        self.indices: dict[int, int] = {}
        self.finished: dict[int, PlayedEpisode] = {}

    def overrule(self, decision: Decision) -> Answer:
        assert decision.expected is not None
        seed = decision.record.seed
        episode = self.playing.setdefault(seed, PlayedEpisode(seed))
        visits = self.visits.setdefault(seed, Counter())
        state = state_of(self.world, decision.request.observation)
        visits[state] += 1
        reason = self.reason(decision, visits[state])
        episode.counts.update(states=1, **{reason or "played_by_policy": 1})
        return Answer(decision.expected) if reason else decision.answer

    def reason(self, decision: Decision, num_visits: int) -> str:
        """Why the oracle takes this turn; "" if it does not."""
        if not is_readable(decision):
            return "taken_over_unreadable"
        if self.world.loses(decision.env, decision.answer.turn):
            return "taken_over_losing"
        if num_visits > MAX_VISITS:
            return "taken_over_third_visit"
        if self.draw(decision, "play") < self.oracle_share:
            return "taken_over_by_share"
        return ""

    def draw(self, decision: Decision, what: str) -> float:
        return random.Random(f"{what} {decision.record.seed} {decision.record.turns}").random()

    def on_turn(self, decision: Decision, played: Answer, following: Observation) -> None:
        label, record = decision.expected, decision.record
        assert label is not None
        episode = self.playing[record.seed]
        is_right = self.compare(decision, episode)
        index = self.indices.get(record.seed, 0)
        is_oracles = played.turn is label
        # A history must not show the oracle's turn where another was played: an index is left out behind it.
        self.indices[record.seed] = index + (1 if is_oracles else 2)
        if label == Turn():
            episode.counts["unlabelled"] += 1
        elif is_right and random.Random(f"keep {record.seed} {record.turns - 1}").random() >= self.keep_agreed:
            episode.counts["thinned"] += 1
        else:
            results = tuple(ToolResult(**result) for result in record.steps[-1].results) if is_oracles else ()
            episode.rows.append(state_row(self.world, decision, label, index, results))

    def compare(self, decision: Decision, episode: PlayedEpisode) -> bool:
        """Whether the policy calls the very same as the oracle; counted, by tool too. `equivalent`: it comes to the same
        by the world's judgement, which may leave out notes, and is still something to learn."""
        label = decision.expected
        assert label is not None
        if not is_readable(decision):
            episode.counts["unreadable"] += 1
            return False
        own, best = calls_json(decision.answer.turn), calls_json(label)
        for tool in {call["name"] for call in [*own, *best]}:
            mine, wanted = ([call for call in calls if call["name"] == tool] for calls in (own, best))
            (episode.agreed if mine == wanted else episode.differed)[tool] += 1
        is_same = own == best and decision.answer.turn.text == label.text
        comes_to_the_same = not is_same and bool(own) and self.world.is_equivalent(own, best)
        episode.counts["agreed" if is_same else "equivalent" if comes_to_the_same else "differed"] += 1
        return is_same

    def end(self, record: EpisodeRecord) -> None:
        episode = self.playing.pop(record.seed, None) or PlayedEpisode(record.seed)
        self.visits.pop(record.seed, None)
        self.indices.pop(record.seed, None)
        episode.counts.update(episodes=1, solved=int(record.success), failed_to_play=int(record.end_reason == "error"))
        episode.error = last_line(record.error)
        self.finished[record.seed] = episode


def is_readable(decision: Decision) -> bool:
    """Whether the answer can be taken for a turn; words alone cannot where the oracle calls something."""
    answer, label = decision.answer, decision.expected
    return not answer.error and bool(answer.turn.tool_calls or (label and not label.tool_calls))


def state_of(world: World, observation: Observation) -> str:
    """A hash of what is seen, the count of turns left out."""
    digest = hashlib.sha256(world.timeless(observation.text).encode())
    for picture in observation.pictures:
        digest.update(picture.open().tobytes())
    return digest.hexdigest()


def state_row(
    world: World, decision: Decision, turn: Turn, turn_index: int, results: tuple[ToolResult, ...], episode: str = ""
) -> StateRow:
    """The row that teaches `turn` in the state of a decision."""
    request, record = decision.request, decision.record
    name = episode or f"{record.seed:08x}"
    shown = (request.system_prompt, request.observation)
    recorded = RecordedTurn(name, record.mission, turn_index, *shown, turn, results)
    return StateRow(state_of(world, request.observation), *encode(recorded))


def last_line(error: str) -> str:
    return error.strip().rpartition("\n")[2]


class NewStates:
    """Writes the rows of episodes, each state once, as a dataset folder."""

    def __init__(self, folder: Path):
        self.writer = RowWriter(folder)
        self.seen: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.agreed: Counter[str] = Counter()
        self.differed: Counter[str] = Counter()
        self.error = ""

    def __enter__(self) -> "NewStates":
        self.writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.__exit__(*error)

    def add(self, episode: PlayedEpisode) -> None:
        self.counts.update(episode.counts)
        self.agreed.update(episode.agreed)
        self.differed.update(episode.differed)
        self.error = self.error or episode.error
        for row in episode.rows:
            if row.state in self.seen:
                self.counts["repeated"] += 1
                continue
            self.seen.add(row.state)
            self.writer.write_encoded(row.pngs, row.row)
            self.counts["rows"] += 1

    def agreement(self) -> dict[str, dict[str, int]]:
        """By tool: states in which policy or oracle calls it, and those of them in which both call it alike."""
        totals = self.agreed + self.differed
        return {tool: {"states": totals[tool], "agreed": self.agreed[tool]} for tool in sorted(totals)}

    def told(self) -> dict:
        """What the manifest says of it."""
        return {**self.counts, **({"agreement": self.agreement()} if self.agreement() else {})}

    def refuse_nothing(self) -> None:
        """ValueError if there is not one row."""
        if self.counts["rows"]:
            return
        remedy = "play more episodes, or keep more of the states in which the policy does what the oracle does"
        if self.counts["missions"]:
            remedy = (
                "no mission was won; allow more attempts, a higher temperature or easier rules, or let it imitate an oracle or "
                "people first"
            )
        raise ValueError(f"{dict(self.counts)}: there is nothing to learn; {self.error or remedy}")
