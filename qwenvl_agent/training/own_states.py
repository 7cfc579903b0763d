"""The makers of what a policy learns from its own play: its states with the oracle's turns, or the missions that it won.

Every rank loads the weights, plays its share of the seeds and writes its episodes to `parts/` as they end; then rank 0
writes the dataset, in the order of the seeds. A round that was killed is played again from its beginning: the same weights,
settings and number of ranks play the same episodes.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from qwenvl_agent.config import Config, OwnStatesConfig, SourceConfig, WonMissionsConfig
from qwenvl_agent.evaluation.own_states import NewStates, PlayedEpisode, make_teacher, play_own_states
from qwenvl_agent.evaluation.suites import training_suite
from qwenvl_agent.evaluation.suites.episodes import Episodes
from qwenvl_agent.evaluation.won_missions import play_to_win
from qwenvl_agent.files import write_manifest
from qwenvl_agent.inference.load import find_run, load_model, local_policy
from qwenvl_agent.settings import to_json
from qwenvl_agent.training.made_data import DataMaker, DataRequest
from qwenvl_agent.worlds.recording import free_seeds
from qwenvl_agent.worlds.world import World

PARTS = "parts"
ANSWERED_BY = ("batch_size", "max_new_tokens", "constrained")
"""Settings of eval.* by which a stage's rollouts are answered, as its evaluations are."""

OnEpisode = Callable[[PlayedEpisode], None]


def played_world(config: Config) -> World:
    """That of the stage's evaluations; ValueError if there is none, or its rows could not be learned alone."""
    suite = training_suite(config.eval)
    if not isinstance(suite, Episodes):
        raise ValueError(
            f"eval.suite is {config.eval.suite!r}: no world is there to play in; name one in the stage's set, as safari"
        )
    if config.prompt.history_steps:
        raise ValueError(
            f"prompt.history_steps is {config.prompt.history_steps}: rows of a policy's own play stand alone, so it would learn "
            "from other prompts than it is played with; set it to 0"
        )
    return suite.world


def source(config: Config, folder: Path) -> SourceConfig:
    return SourceConfig(path=str(folder), kind="recorded", world=config.eval.suite)


def source_of_states(config: Config, settings: object, folder: Path) -> SourceConfig:
    assert isinstance(settings, OwnStatesConfig)
    make_teacher(played_world(config), settings.oracle)
    return source(config, folder)


def source_of_missions(config: Config, settings: object, folder: Path) -> SourceConfig:
    assert isinstance(settings, WonMissionsConfig)
    played_world(config)
    if settings.temperature == 0 and settings.attempts > 1:
        raise ValueError(
            f"attempts is {settings.attempts} at temperature 0: all would be the same; raise the temperature, or try once"
        )
    return source(config, folder)


def make_states(request: DataRequest) -> None:
    settings = request.settings
    assert isinstance(settings, OwnStatesConfig)

    def play(player: "Player", on_episode: OnEpisode) -> None:
        play_own_states(
            player.world,
            player.policy.with_seed(request.config.train.seed),
            make_teacher(player.world, settings.oracle),
            player.seeds,
            oracle_share=settings.oracle_share,
            keep_agreed=settings.keep_agreed,
            batch_size=request.config.eval.batch_size,
            on_episode=on_episode,
        )

    make(request, settings, play)


def make_missions(request: DataRequest) -> None:
    settings = request.settings
    assert isinstance(settings, WonMissionsConfig)

    def play(player: "Player", on_episode: OnEpisode) -> None:
        for mission in play_to_win(
            player.world,
            player.policy.with_seed,
            player.seeds,
            attempts=settings.attempts,
            keep=settings.keep,
            draw_seed=request.config.train.seed,
            batch_size=request.config.eval.batch_size,
        ):
            on_episode(mission)

    make(request, settings, play)


OWN_STATES = DataMaker(source=source_of_states, make=make_states)
WON_MISSIONS = DataMaker(source=source_of_missions, make=make_missions)


class Player:
    """One rank's: the policy, the world, and its share of the seeds."""

    def __init__(self, request: DataRequest, temperature: float, seeds: range):
        cfg, ranks = request.config.eval, request.ranks
        answered = {name: getattr(cfg, name) for name in ANSWERED_BY} | {"temperature": temperature}
        overrides = [f"eval.{name}={json.dumps(value)}" for name, value in answered.items()]
        loaded = load_model(find_run(request.weights, overrides=overrides), device=ranks.device, say=ranks.print)
        self.policy = local_policy(loaded, draws_each=True)
        self.world = played_world(request.config)
        self.seeds = seeds[ranks.process_index :: ranks.num_processes]


def make(
    request: DataRequest,
    settings: OwnStatesConfig | WonMissionsConfig,
    play: Callable[[Player, OnEpisode], None],
) -> None:
    """Each rank's part, then the dataset of all."""
    ranks, parts = request.ranks, request.folder / PARTS
    world = played_world(request.config)
    seeds = seeds_of(request, world, settings.episodes)
    if ranks.is_main_process:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
    ranks.wait_for_everyone()
    ranks.print(f"{request.config.name}: {request.weights} plays seeds {seeds[0]} to {seeds[-1]}")
    with open(part(parts, ranks.process_index), "w", encoding="utf-8") as file:

        def write(episode: PlayedEpisode) -> None:
            file.write(json.dumps(episode.to_json()) + "\n")

        play(Player(request, settings.temperature, seeds), write)
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        about: dict = {"world": request.config.eval.suite, "rules": dict(world.rules), "seed_set": "training"}
        about |= {"policy": str(request.weights), "round": request.round, "draw_seed": request.config.train.seed}
        about |= {"seeds": [seeds[0], seeds[-1]], "settings": to_json(settings)}
        ranks.print(write_dataset(request.folder, about, world, read_parts(parts, ranks.num_processes)))
        shutil.rmtree(parts)
    ranks.wait_for_everyone()


def seeds_of(request: DataRequest, world: World, num: int) -> range:
    """Behind those of this run's data, earlier rounds among it, and of the data that its first weights have learned."""
    known = [*request.config.data.sources, *find_run(request.weights).config.data.sources]
    return free_seeds(world, [path for cfg in known if (path := Path(cfg.path)) != request.folder], num)


def write_dataset(folder: Path, about: dict, world: World, episodes: Iterator[PlayedEpisode]) -> str:
    """The dataset of all ranks' episodes; what is to be said of it."""
    env = world.make_env()
    env.close()
    with NewStates(folder) as states:
        for episode in episodes:
            states.add(episode)
    states.refuse_nothing()
    write_manifest(folder, about | {"tools": [tool.to_json() for tool in env.tools], **states.told()})
    alike = (f"{tool} {100 * n['agreed'] / n['states']:.1f} %" for tool, n in states.agreement().items())
    agreement = f"; policy and oracle alike: {', '.join(alike)}" if states.agreement() else ""
    return f"{folder}: {dict(states.counts)}{agreement}"


def part(parts: Path, rank: int) -> Path:
    return parts / f"rank_{rank}.jsonl"


def read_parts(parts: Path, num_ranks: int) -> Iterator[PlayedEpisode]:
    """The episodes in the order of the seeds, of which rank r has played every `num_ranks`-th from the r-th on."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(part(parts, rank), encoding="utf-8")) for rank in range(num_ranks)]
        while True:
            for file in files:
                line = file.readline()
                if not line:
                    return
                yield PlayedEpisode.from_json(json.loads(line))
