"""A page to play with: missions of any world by hand or by an agent, screenshots, and two runs beside each other.

    session.py      one mission, a turn at a time
    playground.py   who may be asked, which worlds there are, the missions in play, and the one thread that all of it runs in
    views.py        what a turn and a mission look like, as HTML
    tokens.py       a prompt token by token
    page.py         the page, of gradio
    server.py       where it is served: this machine alone, behind a token

One decision: nothing of a mission is in the page. It says what was clicked, and shows what `Playground` gives back.
"""
