"""How missions are phrased beyond `missions.SENTENCES` and `missions.PHRASES`, in sets that the rule `phrasing` names.

    usual     the sentences and phrases of missions.py
    more      these and MORE, for training on
    held_out  HELD_OUT alone, for evaluation: no other set has one of its sentences, nor of its phrases for a target

Words for colours and animals are the same in all. Markers like [을] are Korean particles (`missions.with_particles`).
"""

from collections.abc import Mapping

Sentences = Mapping[str, Mapping[tuple[int, bool], tuple[str, ...]]]
"""By language, number of targets and whether the order is given."""
Phrases = Mapping[str, tuple[str, ...]]
"""By language; of a target."""

MORE_PHRASES: Phrases = {
    "ko": ("{colour} 배경에 있는 {kind}",),
    "en": ("{kind} with a {colour} background", "{colour} background {kind}"),
    "zh": ("{colour}背景上的{kind}",),
}
HELD_OUT_PHRASES: Phrases = {
    "ko": ("{colour} 칸의 {kind}", "{colour} 칸에 있는 {kind}"),
    "en": ("{kind} on the {colour} tile", "{kind} in the {colour} square"),
    "zh": ("{colour}格子里的{kind}", "{colour}方块上的{kind}"),
}
MORE: Sentences = {
    "ko": {
        (1, False): (
            "{0}[을] 찾아 주세요.",
            "{0}[을] 잡아 주세요!",
            "{0} 좀 찾아줄래?",
            "{0}[이] 필요해. 찾아줘.",
            "어서 {0}[을] 잡으러 가자",
        ),
        (2, False): ("{0}[과] {1}[을] 찾아 주세요.", "{0} 그리고 {1}, 둘 다 잡아줘", "{0}[과] {1}[이] 목표야."),
        (3, False): ("{0}, {1}, {2}, 이렇게 셋을 찾아줘", "{0}[과] {1}[과] {2}[을] 잡아 주세요."),
        (2, True): ("{0}[을] 먼저 찾고 나서 {1}[을] 찾아 주세요.", "순서대로 {0}, {1}[을] 잡아 주세요."),
        (3, True): (
            "순서대로 {0}, {1}, {2}[을] 잡아 주세요.",
            "{0}[을] 먼저, 그다음 {1}[을], 그다음 {2}[을] 찾아줘",
        ),
    },
    "en": {
        (1, False): (
            "Please find the {0}.",
            "Go to the {0}.",
            "Can you find the {0}?",
            "Your target is the {0}.",
            "I am looking for the {0}.",
        ),
        (2, False): (
            "Please find the {0} and the {1}.",
            "Your targets are the {0} and the {1}.",
            "Find the {0} as well as the {1}.",
        ),
        (3, False): (
            "Your targets are the {0}, the {1} and the {2}.",
            "Please find the {0}, the {1} and the {2}, in any order.",
        ),
        (2, True): ("Please find the {0} first and then the {1}.", "First go to the {0}, then to the {1}."),
        (3, True): (
            "Please find the {0} first, then the {1} and after that the {2}.",
            "First find the {0}, next the {1}, and then the {2}.",
        ),
    },
    "zh": {
        (1, False): ("请找到{0}。", "你的目标是{0}。", "我在找{0}，请帮忙。", "去抓{0}"),
        (2, False): ("请找到{0}和{1}。", "你的目标是{0}和{1}。", "把{0}和{1}都找到"),
        (3, False): ("请找到{0}、{1}和{2}。", "你的目标是{0}、{1}和{2}。"),
        (2, True): ("请先找到{0}，然后找到{1}。", "先抓{0}再抓{1}"),
        (3, True): ("请先找到{0}，然后{1}，最后{2}。", "先抓{0}，再抓{1}，再抓{2}"),
    },
}
HELD_OUT: Sentences = {
    "ko": {
        (1, False): (
            "혹시 {0} 봤어? 데려와 줘.",
            "오늘의 할 일: {0} 만나기",
            "{0}[을] 보고 싶어",
            "{0} 있는 곳으로 가 줘",
        ),
        (2, False): ("오늘은 {0}[과] {1}[을] 보고 싶어", "오늘의 할 일: {0} 만나기, {1} 만나기"),
        (3, False): ("오늘은 {0}, {1}, {2}[을] 다 보고 싶어", "오늘의 할 일: {0} 만나기, {1} 만나기, {2} 만나기"),
        (2, True): ("차례대로 {0}[과] {1}[을] 보고 싶어", "{0}부터 만나고 {1}[은] 나중에 만나자"),
        (3, True): ("차례대로 {0}, {1}, {2}[을] 보고 싶어", "{0}부터 시작해서 {1}, 끝으로 {2}[을] 만나자"),
    },
    "en": {
        (1, False): (
            "We need the {0}: bring me to it.",
            "Have you seen the {0}? I want to meet it.",
            "Mission of the day: track down the {0}",
            "Take me to the {0}, will you?",
        ),
        (2, False): (
            "I would love to meet the {0} and the {1} today.",
            "Mission of the day: track down the {0} plus the {1}",
        ),
        (3, False): (
            "I would love to meet the {0}, the {1} and the {2} today.",
            "Mission of the day: track down the {0} plus the {1} plus the {2}",
        ),
        (2, True): ("Track down, in this order: the {0}, the {1}", "Start with the {0} and finish with the {1}."),
        (3, True): (
            "Track down, in this order: the {0}, the {1}, the {2}",
            "Start with the {0}, go on to the {1} and finish with the {2}.",
        ),
    },
    "zh": {
        (1, False): ("我想看看{0}", "今天的任务：追踪{0}", "{0}在哪儿？带我过去。", "有人需要{0}，快去！"),
        (2, False): ("我想看看{0}和{1}", "今天的任务：追踪{0}，还有{1}"),
        (3, False): ("我想看看{0}、{1}和{2}", "今天的任务：追踪{0}、{1}，还有{2}"),
        (2, True): ("今天的任务：按顺序追踪{0}、{1}", "从{0}开始，接着是{1}"),
        (3, True): ("今天的任务：按顺序追踪{0}、{1}、{2}", "从{0}开始，接着是{1}，结束于{2}"),
    },
}
