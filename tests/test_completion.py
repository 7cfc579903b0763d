"""Completion by TAB in a real bash: commands, options, choices."""

import shutil
import subprocess

import pytest

from qwenvl_agent.cli import completion

ASK = """
source /dev/stdin; set -- {words}
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
"$(complete -p qwenvl-agent | sed 's/.*-F \\([^ ]*\\).*/\\1/')" 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", said.append)
        assert completion.main(["bash"]) == 0
    return said[0]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qwenvl-agent ev", {"evaluate"}),
        ("qwenvl-agent plan --gpu", {"--gpu-gb", "--gpus"}),
        ("qwenvl-agent export --base ''", {"trained", "original"}),
        ("qwenvl-agent evaluate --format no", {"no_thought"}),
        ("qwenvl-agent generate-ui --dra", {"--draw-first"}),  # and not the former name
    ],
)
def test_bash_completes(script, words, offered):
    done = subprocess.run(["bash", "-c", ASK.format(words=words)], input=script, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered, done.stderr


def test_every_shell_has_a_script(capsys):
    for shell in ("zsh", "tcsh"):
        assert completion.main([shell]) == 0
        assert "qwenvl-agent" in capsys.readouterr().out
