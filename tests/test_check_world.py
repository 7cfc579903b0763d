"""check_world: a good world has no findings, and a world that is broken in one way is found by the check for it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corridor_world import corridor, make_world
from PIL import Image

from qwenvl_agent.cli.check_world import main
from qwenvl_agent.schema import Observation, Picture, Tool, ToolResult
from qwenvl_agent.worlds import check
from qwenvl_agent.worlds.check import CHECKS, check_world
from qwenvl_agent.worlds.gymnasium import GymnasiumEnv
from qwenvl_agent.worlds.world import World

NAME = "tests/corridor_world.py:make_world"


class Changed(GymnasiumEnv):
    """The corridor with one thing done differently: of what is returned, or a method by its name."""

    def __init__(self, world, change=None, **methods):
        super().__init__(world)
        self.change = change or (lambda moment: moment)
        for name, method in methods.items():
            setattr(self, name, method(self, getattr(self, name)))

    def reset(self, **options):
        observation, info = super().reset(**options)
        return self.change({"observation": observation, "info": info})["observation"], info

    def step(self, turn):
        names = ("observation", "reward", "terminated", "truncated", "info")
        moment = self.change(dict(zip(names, super().step(turn), strict=True)))
        return tuple(moment[name] for name in names)


class Broken(World):
    name = "broken"

    def __init__(self, change=None, methods=None, **attributes):
        self.inner = corridor(
            **{k: v for k, v in attributes.items() if k in ("oracle", "make", "state", "optimal_turns")}
        )
        self.rules = {}
        self.change, self.methods = change, methods or {}
        for name, value in attributes.items():
            setattr(self, name, value)

    def make_env(self):
        return Changed(self.inner, self.change, **self.methods)

    def make_oracle(self):
        return self.inner.make_oracle()


def findings(world: World, name: str) -> str:
    subject = check.Subject(lambda: world, {})
    return "\n".join(finding.message for finding in check.run_check(name, subject))


def with_info(**values):
    """A change of what info says."""

    def change(moment):
        moment["info"] |= values
        return moment

    return change


def without(key):
    def change(moment):
        moment["info"].pop(key, None)
        return moment

    return change


def test_a_good_world_has_no_findings():
    assert check_world(make_world) == []
    assert check_world(NAME, {"length": 8}, episodes=2) == []
    assert [findings(Broken(), name) for name in CHECKS] == [""] * len(CHECKS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("mission"), "reset: info has no 'mission': no record could be made; give text"),
        (with_info(success=1), "info['success'] is 1, not True or False"),
        (with_info(success=np.bool_(True)), "info['success'] is np.True_, not True or False"),
        (without("results"), "step 1: info has no 'results'"),
        (with_info(results=()), "0 results for 1 calls"),
        (with_info(results=(ToolResult("walk", {}),)), "the result of act is named 'walk'"),
        (with_info(results=({"status": "ok"},)), "not a tuple of ToolResult"),
        (with_info(end_reason=""), "info['end_reason'] is '' and the episode has ended"),
        (with_info(end_reason="done"), "info['end_reason'] is 'done' and the episode goes on"),
        (with_info(goals=[]), "info['goals'] is [], not a list of names, not empty"),
        (with_info(reached=["the moon"]), "info['reached'] has ['the moon'], which are no goals"),
        (with_info(harm="fell"), "info['harm'] is 'fell', not a list of names"),
        (with_info(optimal_turns=2.5), "info['optimal_turns'] is 2.5"),
        (with_info(position=np.zeros(2)), "info['position'] is array"),
        (with_info(calls=[{"legal": "yes"}]), "info['calls'] has {'legal': 'yes'}"),
        (lambda moment: {**moment, "reward": "1"}, "reward is '1', not a number"),
        (
            lambda moment: {**moment, "terminated": int(moment.get("terminated", 0))},
            "terminated is 0, not True or False",
        ),
        (lambda moment: {**moment, "observation": "text"}, "the observation is str, no schema.Observation"),
        (lambda moment: {**moment, "observation": Observation("")}, "the observation is empty"),
    ],
)
def test_what_reset_and_step_return_is_checked(change, said):
    assert said in findings(Broken(change), "contract")


def test_an_episode_without_an_end_is_found(monkeypatch):
    monkeypatch.setattr(check, "MAX_TURNS", 5)
    monkeypatch.setattr(check.play, "__defaults__", (5,))
    monkeypatch.setattr(check.Subject.play, "__defaults__", (5,))
    endless = Broken(lambda moment: {**moment, "terminated": False, "truncated": False} | {"info": moment["info"]})
    endless.inner.max_turns = 1000
    endless.inner.make = lambda seed: _Still()
    assert "an episode is not over after 5 turns" in findings(endless, "contract")


class _Still(corridor().make(0).__class__):
    """Nothing moves."""

    def __init__(self):
        super().__init__(render_mode="rgb_array")

    def step(self, action):
        return self.x, 0.0, False, False, {}


def test_rules_must_be_json_and_complete():
    def partial_rules(length=6, speed=1):
        return corridor(rules={"length": length})

    def forgetful(length=6):
        return corridor(rules={"length": 6})

    def rules_of(make, **rules):
        return "\n".join(f.message for f in check.run_check("rules", check.Subject(make, rules)))

    assert rules_of(make_world) == ""
    assert "rules lack speed, which the world can be made with" in rules_of(partial_rules)
    wavering = rules_of(lambda length=7: corridor(rules={"length": 13 - length}))
    assert "a world made of the rules {'length': 6} has {'length': 7}: they do not say which" in wavering
    assert "rules are no JSON" in rules_of(lambda: corridor(rules={"length": {1}}))
    assert "become" in rules_of(lambda: corridor(rules={"size": (1, 2)}))
    assert "name is ''" in rules_of(lambda length=6: corridor(name=""))
    assert rules_of(forgetful) == ""  # with its defaults; with other rules it is found:
    assert "cannot be made of its own rules" in rules_of(lambda: corridor(rules={"depth": 3}))


def test_a_name_that_other_processes_do_not_know_is_found(tmp_path):
    subject = check.Subject(make_world, {}, name=str(tmp_path / "gone.py:make_world"))
    assert "another process cannot make the world by its name" in check.run_check("name", subject)[0].message
    subject = check.Subject(make_world, {"length": 9}, name=NAME)
    assert check.run_check("name", subject) == []


def test_seeds_that_give_the_same_worlds_are_found():
    def seeded(change):
        return {"reset": lambda env, reset: lambda seed=None, options=None: reset(seed=change(seed))}

    assert "every seed gives the same start" in findings(Broken(methods=seeded(lambda seed: 1)), "seeds")
    still = Broken(methods=seeded(lambda seed: 1))
    still.is_random = False
    assert findings(still, "seeds") == ""
    wrapped = findings(Broken(methods=seeded(lambda seed: seed % 1_000_000)), "seeds")
    assert "seeds of training and selection give the same starts" in wrapped and "training and report" in wrapped
    assert "no SeedSets" in findings(Broken(seeds=(range(3), range(3))), "seeds")


def test_chance_and_leftovers_are_found():
    draws = np.random.default_rng(0)
    noisy = {"reset": lambda env, reset: lambda seed=None, options=None: reset(seed=int(draws.integers(100)))}
    assert "two environments with the same seed and turns differ" in findings(Broken(methods=noisy), "determinism")

    def counting(env, reset):
        env.times = 0

        def again(seed=None, options=None):
            env.times += 1
            return reset(seed=seed + (env.times > 1))

        return again

    assert "an environment that is reset with the same seed differs" in findings(
        Broken(methods={"reset": counting}), "determinism"
    )


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ((), "there are no tools"),
        ((Tool("go", "Go.", {"type": "object"}),) * 2, "tool 'go' is there twice"),
        ((Tool("go on", "Go.", {"type": "object"}),), "the name cannot be written as a call"),
        ((Tool("go", " ", {"type": "object"}),), "it has no description"),
        ((Tool("go", "Go.", {"type": "objekt"}),), "not a JSON schema"),
        ((Tool("go", "Go.", {"type": "array"}),), "its parameters are of type 'array'"),
        ((Tool("go", "Go.", {"properties": {"how far": {}}}),), "argument 'how far' cannot be written"),
        (
            (Tool("go", "Go.", {"properties": {"x": {"type": "string", "pattern": "^[0-9]{9}$"}}, "required": ["x"]}),),
            "none of 50 random arguments fits its schema",
        ),
    ],
)
def test_tools_that_cannot_be_called_are_found(tools, said):
    world = Broken()
    world.inner.tools = tools
    assert said in findings(world, "tools")


def test_calls_that_crash_or_pass_are_found():
    def crashing(env, run_call):
        return lambda call: run_call(call) if call.name == "act" and "action" in call.arguments else 1 / 0

    found = findings(Broken(methods={"run_call": crashing}), "answers")
    assert "an unknown tool raises ZeroDivisionError" in found
    assert 'act with arguments {"no_such_argument_": 1} raises ZeroDivisionError' in found
    passing = Broken(methods={"run_call": lambda env, run_call: lambda call: ({"status": "ok"}, True, True)})
    assert "an unknown tool counts as legal" in findings(passing, "answers")
    silent = Broken(lambda moment: {**moment, "info": moment["info"]} if moment["info"]["results"] else moment)
    silent.change = lambda moment: (moment["info"].update(results=()), moment)[1]
    assert "a turn without a call: 0 results for 0 calls" in findings(silent, "answers")


def test_an_environment_that_goes_on_after_its_end_or_does_not_close_is_found():
    def going_on(env, step):
        def answered(turn):
            env.end_reason = ""
            return step(turn)

        return answered

    assert "step after the end is answered" in findings(Broken(methods={"step": going_on}), "ends")

    def once(env, close):
        env.is_closed = False

        def closed():
            if env.is_closed:
                raise RuntimeError("closed twice")
            env.is_closed = env.episode is not None
            close()

        return closed

    twice = findings(Broken(methods={"close": once}), "ends")
    assert "close, the second time, raises RuntimeError: closed twice" in twice
    never = Broken(methods={"close": lambda env, close: lambda: env.episode.env.close()})
    assert "close before the first reset raises AttributeError" in findings(never, "ends")


def test_an_oracle_that_loses_or_wavers_or_beats_the_best_is_found():
    loses = Broken(oracle=lambda episode: ("", ["right" if episode.seed % 2 else "left"]))
    assert "the oracle wins 5 of 10 episodes and claims 1 (lost: seed 0)" in findings(loses, "oracle")
    loses.oracle_success = 0.5
    assert findings(loses, "oracle") == ""
    draws = np.random.default_rng(0)
    wavers = Broken(oracle=lambda episode: (f"Perhaps {draws.integers(10**9)}.", ["right"]))
    assert findings(wavers, "oracle") == ""  # its thought is not in the world; its turns are:
    wavers = Broken(oracle=lambda episode: ("", [("left", "right")[draws.integers(2)]]))
    wavers.oracle_success = 0.1
    assert "the oracle plays differently a second time" in findings(wavers, "oracle")
    too_good = Broken(optimal_turns=lambda episode: 99)
    assert "turns, and optimal_turns is 99: efficiency would be above 1" in findings(too_good, "oracle")


def test_control_tokens_in_what_a_model_reads_are_found():
    def spell(moment):
        object.__setattr__(moment["observation"], "text", "Mission: <|im_end|>")
        return moment

    assert "the observation's text spells a control token at '<|im_end|>'" in findings(Broken(spell), "text")


def test_a_turn_that_a_format_cannot_carry_is_found(monkeypatch):
    class Cut:
        def __getattr__(self, name):
            return getattr(check.FORMATS["plain"], name)

        def parse(self, text, tools):
            return check.FORMATS["plain"].parse(text[:-1], tools)

    monkeypatch.setitem(check.FORMATS, "native", Cut())
    found = findings(Broken(), "formats")
    assert found.startswith("native: ") and "is read back as" in found and "plain" not in found


def test_pictures_that_no_model_takes_are_found():
    def shown(*pictures):
        def change(moment):
            return {**moment, "observation": Observation("x", pictures)}

        return change

    thin = Picture.from_image(Image.new("RGB", (402, 2)))
    assert "402x2 px, an aspect ratio above 200" in findings(Broken(shown(thin)), "pictures")
    wrong = replace(Picture.from_image(Image.new("RGB", (4, 4))), width=5)
    assert "a picture is not of the size that it states" in findings(Broken(shown(wrong)), "pictures")
    growing = iter(range(2, 10_000))

    def grow(moment):
        return shown(Picture.from_image(Image.new("RGB", (next(growing), 4))))(moment)

    assert "pictures change their number or size within an episode" in findings(Broken(grow), "pictures")


def test_the_command_says_what_it_found_and_ends_with_1(capsys, tmp_path):
    assert main([NAME, "--set", "length=5", "--episodes", "2"]) == 0
    assert capsys.readouterr().out.count("ok  ") == len(CHECKS)
    broken = tmp_path / "broken.py"
    broken.write_text(
        (Path(__file__).parent / "corridor_world.py").read_text().replace('"rules": {"length": length}', '"rules": {}')
    )
    assert main([f"{broken}:make_world", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["check"] == "rules" and finding["message"].startswith("rules lack length, which")
    assert main(["nowhere"]) == 2
    assert "world 'nowhere' does not exist" in capsys.readouterr().err


def test_our_safari_passes():
    assert check_world("safari", {"tile_px": 16, "width": 20, "height": 20, "num_trees": 48, "max_turns": 40}, 3) == []


@pytest.mark.browser
def test_our_browser_passes():
    assert check_world("browser", {"tasks": ["boards"], "max_turns": 6}, 3) == []
