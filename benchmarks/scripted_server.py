"""A model and a checker of fixed cost behind one loopback port, and a ledger of what they did; started as a process.

Whoever is measured talks to the same server in the same way, so that what differs is the guard between. A request with
``"stream": true`` is the model: to ``benign N`` it answers N words, to ``harmful N AT`` as well, and the one at AT is
the violation. Any other chat request is the checker, whose model name ``checker:MS`` says what it costs: it answers
``yes`` where it is shown the violation. ``/v1/ledger`` tells when each word of the last answer was sent, by the clock
that all processes of a machine share.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from scripted_stream import VIOLATION, word

from ada_guard.testing import Pause, Reply, ScriptedEndpoint
from ada_guard.testing_endpoint import Asked

QUESTION = re.compile(r"(?:benign|harmful) (\d+)(?: (\d+))?$")


class PacedAnswer(Sequence[Any]):
    """The words of an answer, each due at a fixed time after the request: waiting for one delays none of the others.

    Args:
        tokens: How many words.
        token_s: What each one costs.
        violation: The word, counted from 1, that is harmful; 0 for none.
    """

    def __init__(self, tokens: int, token_s: float, violation: int) -> None:
        self._words = [VIOLATION if number == violation else word(number) for number in range(1, tokens + 1)]
        self._token_s = token_s
        self.sent_at: list[float] = []
        self.ended_at: float | None = None

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: Any) -> Any:
        return self._words[index]

    def __iter__(self) -> Iterator[Any]:
        started = time.perf_counter()
        try:
            for number, said in enumerate(self._words, start=1):
                yield Pause(max(0.0, started + number * self._token_s - time.perf_counter()))
                self.sent_at.append(time.perf_counter())
                yield said
        finally:  # also where the client has left
            self.ended_at = time.perf_counter()


class Script:
    """What the server says, and what it has said.

    Args:
        token_ms: What a word of an answer costs.
    """

    def __init__(self, token_ms: float) -> None:
        self._token_s = token_ms / 1000
        self._checks = 0
        self._answer: PacedAnswer | None = None
        self._asked: Asked | None = None

    def __call__(self, asked: Asked) -> Reply:
        if asked.path.endswith("/ledger"):
            return Reply(json=self._ledger())
        content = " ".join(str(message["content"]) for message in asked.body["messages"])
        if asked.body.get("stream"):
            asked_for = QUESTION.search(content)
            if asked_for is None:
                return Reply(status=400, json={"error": {"message": "not a question that the script knows"}})
            self._answer = PacedAnswer(int(asked_for[1]), self._token_s, int(asked_for[2] or 0))
            self._asked = asked
            return Reply(items=self._answer)
        self._checks += 1
        said = {"role": "assistant", "content": "yes" if VIOLATION.strip() in content else "no"}
        body = {
            "id": "check",
            "object": "chat.completion",
            "created": 0,
            "model": asked.body["model"],
            "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        cost = Pause(float(asked.body["model"].split(":")[1]) / 1000)
        # The space goes first because a reply of bytes goes out as it is; JSON may begin with one.
        return Reply(
            items=(b" ", cost, json.dumps(body).encode()),
            content_type="application/json",
            finish_reason=None,
            done=False,
        )

    def _ledger(self) -> dict[str, Any]:
        answer = self._answer
        return {
            "checks": self._checks,
            "over": self._asked is None or self._asked.over.is_set(),
            "sent_at": [] if answer is None else answer.sent_at,
            "ended_at": None if answer is None else answer.ended_at,
        }


def main() -> None:
    """Prints the address and serves until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--token-ms", type=float, required=True)
    options = parser.parse_args()
    with ScriptedEndpoint(Script(options.token_ms)).serve() as base_url:
        print(base_url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
