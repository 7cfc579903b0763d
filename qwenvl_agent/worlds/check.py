"""What Gymnasium's `check_env` is for environments, for worlds: does this one keep the contract of `worlds.world`?

    qwenvl-agent check-world path/to/world.py:make_world --rule size=4

Each check plays the world and reports what it finds: what, consequence, remedy. A world without findings can be
recorded, trained on, evaluated and shown; whether it is a good one is another question.
"""

import dataclasses
import inspect
import json
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from qwenvl_agent.formats import FORMATS
from qwenvl_agent.images import check_aspect_ratio
from qwenvl_agent.schema import (
    CONTROL_SPELLING,
    TOOL_NAME,
    Env,
    Observation,
    Request,
    ToolCall,
    ToolResult,
    Turn,
)
from qwenvl_agent.statistics import wilson
from qwenvl_agent.tool_schema import argument_error, check_schema
from qwenvl_agent.worlds.baselines import random_call, random_turn
from qwenvl_agent.worlds.registry import find_maker
from qwenvl_agent.worlds.world import SeedSets, World

EPISODES = 10
"""Of the oracle; other policies play fewer."""
FEW = 3
MAX_TURNS = 1000
"""An episode of random play that is longer is taken to be without an end."""
NUM_STARTS = 8
"""Of each seed set."""
LEGAL_VALUES = (True, False, None)
Find = Callable[["Subject"], Iterator[str]]


@dataclass(frozen=True)
class Finding:
    """What a check found: `message` says value, consequence, remedy."""

    check: str
    message: str


@dataclass(frozen=True)
class Moment:
    """What an environment returned: of a reset (no turn), or of a step."""

    observation: Observation
    info: dict
    turn: Turn | None = None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def is_end(self) -> bool:
        return self.terminated or self.truncated

    def fingerprint(self) -> dict:
        """All of it in values that can be compared, pictures by their pixels."""
        info = {key: json.dumps(value, default=_plain, sort_keys=True) for key, value in self.info.items()}
        seen = {"text": self.observation.text, "pictures": [p.open().tobytes() for p in self.observation.pictures]}
        return {**seen, "reward": self.reward, "end": (self.terminated, self.truncated), **info}


Choose = Callable[[Env, Observation], Turn]


def play(env: Env, seed: int, choose: Choose, max_turns: int = MAX_TURNS) -> Iterator[Moment]:
    """One episode, moment by moment."""
    moment = Moment(*env.reset(seed=seed))
    yield moment
    for _ in range(max_turns):
        if moment.is_end:
            return
        turn = choose(env, moment.observation)
        observation, reward, terminated, truncated, info = env.step(turn)
        moment = Moment(observation, info, turn, reward, terminated, truncated)
        yield moment


def at_random(seed: int) -> Choose:
    """Turns that differ from step to step even where the observation does not."""
    rng = random.Random(f"check {seed}")
    return lambda env, observation: random_turn(env.tools, rng)


@dataclass
class Subject:
    """The world that is checked."""

    make: Callable[..., World]
    rules: dict
    name: str = ""
    """By which another process finds it; empty: it has none."""
    episodes: int = EPISODES

    @cached_property
    def world(self) -> World:
        world = self.make(**self.rules)
        if not isinstance(world, World):
            raise ValueError(f"{world!r:.80} is no qwenvl_agent.worlds.World: there is nothing to check; return one")
        return world

    @property
    def seeds(self) -> range:
        return self.world.seeds.training

    def play(self, seed: int, choose: Choose, max_turns: int = MAX_TURNS) -> list[Moment]:
        """An episode in an environment of its own."""
        env = self.world.make_env()
        try:
            return list(play(env, seed, choose, max_turns))
        finally:
            env.close()

    @cached_property
    def tools(self) -> tuple:
        env = self.world.make_env()
        env.close()
        return tuple(env.tools)

    @cached_property
    def random_episodes(self) -> list[list[Moment]]:
        return [self.play(seed, at_random(seed)) for seed in self.seeds[:FEW]]

    @cached_property
    def oracle_episodes(self) -> list[list[Moment]]:
        return [self.play(seed, self.by_oracle()) for seed in self.seeds[: self.episodes]] if self.has_oracle else []

    @cached_property
    def has_oracle(self) -> bool:
        return self.world.make_oracle() is not None

    def by_oracle(self) -> Choose:
        policy = self.world.make_oracle()
        assert policy is not None, "asked for where there is one"
        return lambda env, seen: policy.act([Request(env.system_prompt, env.tools, (), seen)])[0].turn

    def all_episodes(self) -> Iterator[list[Moment]]:
        """Those at random first, which may be found at fault before an oracle stumbles over the same."""
        yield from self.random_episodes
        yield from self.oracle_episodes

    def moments(self) -> Iterator[Moment]:
        return (moment for episode in self.all_episodes() for moment in episode)


def check_rules(subject: Subject) -> Iterator[str]:
    """JSON, and all that makes the world."""
    world = subject.world
    if not isinstance(world.name, str) or not world.name:
        yield f"name is {world.name!r}: results could not say what was played; give the world a name"
    rules = dict(world.rules)
    try:
        written = json.loads(json.dumps(rules, allow_nan=False))
    except (TypeError, ValueError) as error:
        yield f"rules are no JSON ({error}): no result could keep them; give numbers, text, lists and objects"
        return
    if written != rules:
        yield f"rules {_short(rules)} become {_short(written)} as JSON: results could not be compared; use JSON's values"
    missing = sorted(set(_rule_names(subject.make)) - set(rules))
    if missing:
        yield (
            f"rules lack {', '.join(missing)}, which the world can be made with: results of different worlds would count as "
            "comparable; put every setting into rules, defaults included"
        )
    try:
        again = dict(subject.make(**written).rules)
    except Exception as error:
        yield f"the world cannot be made of its own rules ({_last_line(error)}): no result could be repeated; take all keys"
        return
    if again != rules:
        yield f"a world made of the rules {_short(rules)} has {_short(again)}: they do not say which world it is; correct them"


def _rule_names(make: Callable) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in inspect.signature(make).parameters.items() if parameter.kind in kinds]


def check_name(subject: Subject) -> Iterator[str]:
    """Another process finds the same world by name and rules."""
    if not subject.name:
        return
    code = (
        "import json, sys; from qwenvl_agent.worlds import make_world; "
        "print(json.dumps(dict(make_world(sys.argv[1], json.loads(sys.argv[2])).rules)))"
    )
    command = [sys.executable, "-c", code, subject.name, json.dumps(dict(subject.world.rules))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        yield f"another process cannot make the world by its name ({reason}): no worker could record or evaluate it"
    elif json.loads(done.stdout.strip().rpartition("\n")[2]) != dict(subject.world.rules):
        yield f"another process makes another world of the name {subject.name!r}: its rules differ; let rules decide alone"


def check_seeds(subject: Subject) -> Iterator[str]:
    """Sets apart from each other, whose worlds differ."""
    sets = subject.world.seeds
    if not isinstance(sets, SeedSets):
        yield f"seeds are {type(sets).__name__}, no SeedSets: training and report could share worlds; use worlds.SeedSets"
        return
    starts = {
        name: [_start(subject, seed) for seed in seeds[:NUM_STARTS]]
        for name, seeds in (("training", sets.training), ("selection", sets.selection), ("report", sets.report))
    }
    if not subject.world.is_random:
        return
    if len({start for several in starts.values() for start in several}) == 1:
        yield (
            "every seed gives the same start: a report would count one episode many times, with intervals far too narrow; draw "
            "the start from the seed, or say is_random = False"
        )
        return
    for name in ("selection", "report"):
        if starts[name] == starts["training"]:
            yield (
                f"the first {NUM_STARTS} seeds of training and {name} give the same starts: a report would count worlds that "
                "were trained on; use the whole seed"
            )


def _start(subject: Subject, seed: int) -> str:
    (moment,) = subject.play(seed, at_random(seed), max_turns=0)
    found = moment.fingerprint()
    return json.dumps({"text": found["text"], "pictures": [picture.hex() for picture in found["pictures"]]})


def check_determinism(subject: Subject) -> Iterator[str]:
    """The same seed and the same turns give the same, beside another environment and after another episode."""
    for seed in subject.seeds[:FEW]:
        first, second = subject.world.make_env(), subject.world.make_env()
        try:
            pairs = [*zip_longest(play(first, seed, at_random(seed)), play(second, seed, at_random(seed)))]
            if place := _first_difference(pairs):
                yield (
                    f"seed {seed}, {place}: two environments with the same seed and turns differ: nothing could be repeated or "
                    "compared; draw everything from the seed, and keep no state outside the environment"
                )
                return
            again = play(first, seed, at_random(seed))
            if place := _first_difference(zip_longest([one for one, _ in pairs], again)):
                yield (
                    f"seed {seed}, {place}: an environment that is reset with the same seed differs: something of the episode "
                    "before is left; set everything in reset"
                )
                return
        finally:
            first.close()
            second.close()


def _first_difference(pairs: Iterable[tuple[Moment | None, Moment | None]]) -> str:
    """Turn, and what differs in it; "" if nothing does."""
    return next((f"turn {turn}, in {found}" for turn, pair in enumerate(pairs) if (found := _differing(*pair))), "")


def _differing(first: Moment | None, second: Moment | None) -> str:
    """What differs, by name; "" if nothing does."""
    if first is None or second is None:
        return "how long the episode is"
    one, other = first.fingerprint(), second.fingerprint()
    return ", ".join(key for key in {**one, **other} if one.get(key) != other.get(key))


def check_tools(subject: Subject) -> Iterator[str]:
    """Names that can be written, schemas that can be checked."""
    tools = subject.tools
    if not tools:
        yield "there are no tools: an agent could do nothing; give the environment at least one"
    names = [tool.name for tool in tools]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"tool {name!r} is there twice: which is meant cannot be told; give each its own name"
    for tool in tools:
        yield from (f"tool {tool.name!r}: {fault}" for fault in _faults_of_tool(tool))


def _faults_of_tool(tool) -> Iterator[str]:
    if not TOOL_NAME.fullmatch(tool.name):
        yield "the name cannot be written as a call; use letters, digits, '_', '-', '.'"
        return
    if not tool.description.strip():
        yield "it has no description: a model that never saw it could not know what it does; write one"
    try:
        check_schema(tool.parameters)
    except ValueError as error:
        yield f"its parameters: {error}"
        return
    if tool.parameters.get("type", "object") != "object":
        yield f"its parameters are of type {tool.parameters['type']!r}: calls have named arguments; use an object"
        return
    for name in tool.parameters.get("properties", {}):
        if not TOOL_NAME.fullmatch(name):
            yield f"argument {name!r} cannot be written as name=value; rename it"
            return
    try:
        random_call(tool, random.Random(0))
    except ValueError as error:
        yield str(error)


def check_contract(subject: Subject) -> Iterator[str]:
    """What reset and step return, by types and keys."""
    for episode in subject.all_episodes():
        for number, moment in enumerate(episode):
            faults = [*_faults_of_returns(moment), *_faults_of_info(moment)]
            if faults:
                when = f"step {number}" if number else "reset"
                yield from (f"{when}: {fault}" for fault in dict.fromkeys(faults))
                return
        if not episode[-1].is_end:
            yield (
                f"an episode is not over after {MAX_TURNS} turns: an evaluation of such a policy would never end; truncate it by "
                "a limit of turns"
            )
            return


def _faults_of_returns(moment: Moment) -> Iterator[str]:
    if not isinstance(moment.observation, Observation):
        yield f"the observation is {type(moment.observation).__name__}, no schema.Observation: nothing can be shown"
    elif not moment.observation.text and not moment.observation.pictures:
        yield "the observation is empty: an agent would act blindly; give it text or a picture"
    if not isinstance(moment.info, dict):
        yield f"info is {type(moment.info).__name__}, no dict"
    for name in ("terminated", "truncated"):
        if type(getattr(moment, name)) is not bool:
            yield f"{name} is {getattr(moment, name)!r}, not True or False; convert it with bool()"
    if isinstance(moment.reward, bool) or not isinstance(moment.reward, int | float):
        yield f"reward is {moment.reward!r}, not a number; convert it with float()"


def _faults_of_info(moment: Moment) -> Iterator[str]:
    info = moment.info
    yield from _faults_of_keys(info, REQUIRED if moment.turn is None else REQUIRED | OF_STEP, OPTIONAL)
    if moment.turn is None or not isinstance(info.get("results"), tuple | list):
        return
    yield from _faults_of_results(moment.turn, list(info["results"]), moment.is_end)
    end_reason = info.get("end_reason")
    if isinstance(end_reason, str) and bool(end_reason) != moment.is_end:
        yield (
            f"info['end_reason'] is {end_reason!r} and the episode {'has ended' if moment.is_end else 'goes on'}: a report could "
            'not say how it ended; name a reason at the end, and "" before'
        )
    goals, reached = info.get("goals", ()), info.get("reached", ())
    unknown = [goal for goal in reached if goal not in goals] if "goals" in info else []
    if unknown:
        yield f"info['reached'] has {unknown[:3]}, which are no goals: progress would be above 1; name goals alone"
    for flags in info.get("calls", ()):
        wrong = {key: flags.get(key) for key in ("legal", "effective", "optimal") if flags.get(key) not in LEGAL_VALUES}
        if wrong:
            yield f"info['calls'] has {wrong}: a flag is True, False, or None for what is not known"


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


REQUIRED = {
    "mission": ("text", lambda value: isinstance(value, str)),
    "success": ("True or False", lambda value: type(value) is bool),
}
OF_STEP = {
    "results": (
        "a tuple of ToolResult",
        lambda value: isinstance(value, list | tuple) and all(isinstance(item, ToolResult) for item in value),
    ),
    "end_reason": ("text", lambda value: isinstance(value, str)),
}
OPTIONAL = {
    "goals": ("a list of names, not empty", lambda value: _is_names(value) and bool(value)),
    "reached": ("a list of names", _is_names),
    "harm": ("a list of names", _is_names),
    "optimal_turns": ("a whole number or None", lambda value: value is None or (type(value) is int and value >= 0)),
    "position": (
        "a list of numbers, or None",
        lambda value: value is None or (isinstance(value, list | tuple) and all(type(item) is int for item in value)),
    ),
    "calls": (
        "a list of objects",
        lambda value: isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value),
    ),
    "changed_turn": ("a whole number or None", lambda value: value is None or type(value) is int),
}


def _faults_of_keys(info: dict, required: dict, optional: dict) -> Iterator[str]:
    for key, (kind, is_right) in (required | optional).items():
        if key not in info:
            if key in required:
                yield f"info has no {key!r}: no record could be made; give {kind}"
        elif not is_right(info[key]):
            yield f"info[{key!r}] is {_short(info[key])}, not {kind}: no record could keep it; convert it"


def _faults_of_results(turn: Turn, results: list, is_end: bool) -> Iterator[str]:
    most = max(1, len(turn.tool_calls))
    least = 1 if is_end else most
    if not least <= len(results) <= most:
        yield (
            f"{len(results)} results for {len(turn.tool_calls)} calls: an agent could not tell which call did what; give one for "
            "each call that was run, in their order, and one for a turn without a call"
        )
    for call, result in zip(turn.tool_calls, results, strict=False):
        if isinstance(result, ToolResult) and result.name != call.name:
            yield f"the result of {call.name} is named {result.name!r}: it could not be placed; name it after its call"
            return


def check_answers(subject: Subject) -> Iterator[str]:
    """What no agent should call is answered, and the episode goes on."""
    turns = {"a turn without a call": Turn(text="I do not know."), "an unknown tool": _call("no_such_tool_", {})}
    for tool in subject.tools:
        arguments = next((a for a in WRONG_ARGUMENTS if _is_refused(tool, a)), None)
        if arguments is not None:
            turns[f"{tool.name} with arguments {json.dumps(arguments)}"] = _call(tool.name, arguments)
    for what, turn in turns.items():
        env = subject.world.make_env()
        try:
            *_, moment = play(env, subject.seeds[0], lambda env, seen, turn=turn: turn, max_turns=1)
        except Exception as error:
            yield f"{what} raises {_last_line(error)}: the episode of an untrained model would crash; answer it with a result"
            continue
        finally:
            env.close()
        yield from (f"{what}: {fault}" for fault in _faults_of_info(moment))
        flags = list(moment.info.get("calls", ()))
        if turn.tool_calls and flags and flags[0].get("legal"):
            yield f"{what} counts as legal: the agent would be told well of what cannot be; set legal to False"


WRONG_ARGUMENTS: tuple[dict, ...] = ({"no_such_argument_": 1}, {}, {"action": 5})


def _is_refused(tool, arguments: dict) -> bool:
    return bool(argument_error(tool.parameters, arguments))


def _call(name: str, arguments: dict) -> Turn:
    return Turn(tool_calls=(ToolCall(name, arguments),))


def check_ends(subject: Subject) -> Iterator[str]:
    """After its end an environment refuses to go on, and it can be closed at any time."""
    env = subject.world.make_env()
    try:
        env.close()
    except Exception as error:
        yield f"close before the first reset raises {_last_line(error)}: nothing is open then; let it do nothing"
    env = subject.world.make_env()
    episode = list(play(env, subject.seeds[0], at_random(subject.seeds[0])))
    if episode[-1].is_end:
        try:
            env.step(_call("no_such_tool_", {}))
        except Exception:
            pass
        else:
            yield "step after the end is answered: a fault in the loop around it would stay unseen; raise ValueError there"
    for time in ("the first", "the second"):
        try:
            env.close()
        except Exception as error:
            yield f"close, {time} time, raises {_last_line(error)}: an evaluation would end there; let it close once"
            return


def check_oracle(subject: Subject) -> Iterator[str]:
    """It wins what it claims, the same way each time, and in no fewer turns than the best."""
    if not subject.has_oracle:
        return
    episodes = subject.oracle_episodes
    wins = sum(bool(episode[-1].info.get("success")) for episode in episodes)
    claimed = float(subject.world.oracle_success)
    if wins < len(episodes) and (claimed == 1.0 or wilson(wins, len(episodes)).high < claimed):
        lost = [
            seed for seed, episode in zip(subject.seeds, episodes, strict=False) if not episode[-1].info.get("success")
        ]
        yield (
            f"the oracle wins {wins} of {len(episodes)} episodes and claims {claimed:g} (lost: seed {lost[0]}): recordings would "
            "teach failures; correct it, or state its share as oracle_success"
        )
    seed = subject.seeds[0]
    pairs = zip_longest(episodes[0], subject.play(seed, subject.by_oracle()))
    if place := _first_difference(pairs):
        yield f"seed {seed}, {place}: the oracle plays differently a second time: the same data could not be recorded again"
    for seed, episode in zip(subject.seeds, episodes, strict=False):
        best = episode[0].info.get("optimal_turns")
        if type(best) is int and episode[-1].info.get("success") and len(episode) - 1 < best:
            yield (
                f"seed {seed}: the oracle wins in {len(episode) - 1} turns, and optimal_turns is {best}: efficiency would be above "
                "1; correct optimal_turns"
            )
            return


def check_text(subject: Subject) -> Iterator[str]:
    """No text that a model reads spells a control token."""
    for moment in subject.moments():
        texts = {"the observation's text": moment.observation.text}
        texts |= {f"the result of {r.name}": json.dumps(r.content) for r in moment.info.get("results", ())}
        for what, text in texts.items():
            found = CONTROL_SPELLING.search(text)
            if found:
                yield (
                    f"{what} spells a control token at {text[found.start() :][:20]!r}: the prompt's structure would break; make "
                    "observations and results of schema's classes, which escape it"
                )
                return


def check_formats(subject: Subject) -> Iterator[str]:
    """Every turn that was played survives each format: written, read, equal."""
    turns = {repr(moment.turn): moment.turn for moment in subject.moments() if moment.turn is not None}
    for name, form in FORMATS.items():
        for turn in turns.values():
            text = "".join(span.text for span in form.render(turn))
            answer = form.parse(text, subject.tools)
            if answer.turn != form.project(turn) or answer.error or answer.repairs:
                got = answer.error or ", ".join(answer.repairs) or answer.turn
                yield (
                    f"{name}: {_short(text)} is read back as {_short(got)}: what is taught would not be what is played; use "
                    "simpler names and values"
                )
                break


def check_pictures(subject: Subject) -> Iterator[str]:
    """Pictures that can be opened, of one size in an episode, and that a model takes."""
    for episode in subject.all_episodes():
        sizes = set()
        for number, moment in enumerate(episode):
            for picture in moment.observation.pictures:
                if picture.open().size != (picture.width, picture.height):
                    yield f"turn {number}: a picture is not of the size that it states: token counts would be wrong"
                    return
                check_aspect_ratio(picture.width, picture.height, f"turn {number}: a picture")
            sizes.add(tuple((picture.width, picture.height) for picture in moment.observation.pictures))
        if len(sizes) > 1:
            yield (
                f"pictures change their number or size within an episode ({sorted(sizes)[:3]}): places in them would move, and "
                "a budget that fits one may not fit another; scale them alike"
            )
            return


def check_suites(subject: Subject) -> Iterator[str]:
    """Each held-out suite can be built under these rules, and the oracle wins the first of its missions."""
    for set_name, suites in subject.world.held_out_suites().items():
        for name, suite in suites.suites.items():
            place = f"held-out suite {set_name}/{name}"
            harder = Subject(subject.make, suite.rules_over(subject.world.rules))
            try:
                has_oracle = harder.has_oracle
                last = harder.play(suite.seeds[0], harder.by_oracle() if has_oracle else at_random(0))[-1]
            except Exception as error:
                yield f"{place}: {_last_line(error)} (at {_place(error)}): it cannot be played; correct its rules"
                continue
            if has_oracle and subject.world.oracle_success == 1.0 and not last.info.get("success"):
                yield (
                    f"{place}: the oracle loses seed {suite.seeds[0]}: what cannot be won measures nothing; correct its rules, or "
                    "the oracle"
                )


CHECKS: dict[str, Find] = {
    "rules": check_rules,
    "name": check_name,
    "tools": check_tools,
    "seeds": check_seeds,
    "contract": check_contract,
    "determinism": check_determinism,
    "answers": check_answers,
    "ends": check_ends,
    "oracle": check_oracle,
    "text": check_text,
    "formats": check_formats,
    "pictures": check_pictures,
    "suites": check_suites,
}


def check_world(
    make: "Callable[..., World] | str", rules: Mapping | None = None, episodes: int = EPISODES
) -> list[Finding]:
    """All that is amiss with a world, given by its function or its name; empty if nothing is."""
    name = make if isinstance(make, str) else ""
    subject = Subject(maker_of(make), dict(rules or {}), name, episodes)
    return [finding for check in CHECKS for finding in run_check(check, subject)]


def maker_of(make: "Callable[..., World] | str") -> Callable[..., World]:
    return find_maker(make) if isinstance(make, str) else make


def run_check(name: str, subject: Subject) -> list[Finding]:
    """The findings of one check; one that cannot go on is a finding itself."""
    findings: list[Finding] = []
    try:
        findings.extend(Finding(name, message) for message in CHECKS[name](subject))
    except Exception as error:
        findings.append(
            Finding(name, f"{_last_line(error)} (at {_place(error)}): the check cannot go on; correct that first")
        )
    return findings


def _plain(value: object) -> object:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else repr(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}..."


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"
