"""Eight users at once for a long time: no secret is crossed, and memory, threads and files stay level.

    python -m tests.reliability.soak FOLDER --seconds 1200 [--model smol-135m]

Each user has a secret that can be said aloud, tells notes, forgets old ones and asks, over and over, by LangChain and by
LlamaIndex in turns, in batches of one scheduler. An answer may name no secret of another user, and may have read nothing
but the user's own memory. Resident memory of the last quarter is compared with that of the second one, threads and open
files after closing with those at the start. What is kept of recent reads and memories is limited to 16 MiB each, which
the first minutes fill: by default it would grow to 1 GiB each. Prints JSON.
"""

import argparse
import gc
import json
import os
import statistics
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import mplus
from mplus.read.spare_prefixes import SPARE_PREFIXES
from tests.reliability import states

SECRETS = {
    "anna": "my dog is called Biscuit",
    "ben": "my boat is called Marigold",
    "carla": "the key lies under the blue pot",
    "dan": "the password of the shed is walnut",
    "eva": "my sister lives in Graz",
    "finn": "the party is on the ninth of May",
    "gina": "my locker has the number seventeen",
    "hugo": "the cat is afraid of umbrellas",
}
WORDS = {user: secret.rpartition(" ")[2] for user, secret in SECRETS.items()}
"""What nobody but the user may hear."""
RECENT_BYTES = 2**24
"""Most bytes of recent memories, and of prefixes of recent reads."""
KEPT = 12
"""So many notes are kept beside the secret."""


def taken() -> dict[str, int]:
    """Resident bytes, threads and open files of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


class Users:
    """What the users do, and what went wrong."""

    def __init__(self, model: mplus.MPlus, folder: Path, scheduler: mplus.Scheduler) -> None:
        from mplus_integrations.langchain import MPlusChat
        from mplus_integrations.llama_index import MPlusLLM

        self.store = mplus.MemoryStore(folder, max_resident_bytes=RECENT_BYTES)
        shared: dict[str, Any] = {"model": model, "store": self.store, "scheduler": scheduler, "max_tokens": 12}
        self.chat, self.llm = MPlusChat(**shared), MPlusLLM(**shared)
        self.turns, self.told = 0, 0
        self.crossed: list[str] = []
        self.failed: list[str] = []

    def live(self, user: str, until: float) -> None:
        """One user's turns."""
        number = 0
        while time.monotonic() < until:
            try:
                self.turn(user, number)
            except Exception as error:
                self.failed.append(f"{user}, turn {number}: {error!r:.200}")
                return
            number += 1
            self.turns += 1

    def turn(self, user: str, number: int) -> None:
        """Tell, forget, ask."""
        if number == 0:
            self.chat.memorize(f"Remember that {SECRETS[user]}.", source=f"{user}/secret", memory_key=user)
        note = f"Note {number} of {user}: box {number % 97} went into drawer {number % 7}."
        self.chat.memorize(note, source=f"{user}/{number}", memory_key=user)
        if number >= KEPT:
            self.chat.forget(f"{user}/{number - KEPT}", memory_key=user)
        question = f"What do you know of drawer {number % 7}, and what is the secret?"
        if number % 2:
            answer = self.llm.complete(question, memory_key=user, gate="always")
            self.look(user, number, answer.text, answer.raw or {})
        else:
            said = self.chat.invoke(question, memory_key=user, gate="always")
            self.look(user, number, str(said.content), said.response_metadata)

    def look(self, user: str, number: int, text: str, about: Mapping[str, Any]) -> None:
        """See that an answer is of the user's own."""
        others = [word for other, word in WORDS.items() if other != user and word.lower() in text.lower()]
        # A turn of the question itself has no user in its name.
        read = [one["source"] for one in about["recalled"] if "/" in one["source"]]
        foreign = [source for source in read if not source.startswith(f"{user}/")]
        if others or foreign or not read:
            self.crossed.append(f"{user}, turn {number}: {others or foreign or 'nothing was read'}")
        self.told += WORDS[user].lower() in text.lower()

    def held(self, model: mplus.MPlus) -> list[str]:
        """What a memory holds in the end that it should not, or not what it should."""
        wrong: list[str] = []
        for user in SECRETS:
            names = [source.name for source in self.store.load(user, model).sources()]
            if f"{user}/secret" not in names or any("/" in n and not n.startswith(f"{user}/") for n in names):
                wrong.append(f"{user}: {names[:5]}")
        return wrong


def soak(model: mplus.MPlus, folder: Path, seconds: float) -> dict[str, Any]:
    """Everything, and what was found."""
    with model.serve() as warm:  # whatever is made once in a process is made before anything is counted
        Users(model, folder / "before", warm).turn("anna", 0)
    gc.collect()
    start, samples, minutes = taken(), list[int](), list[int]()
    with model.serve(max_running=4) as scheduler:
        users = Users(model, folder / "store", scheduler)
        begun = time.monotonic()
        running = [threading.Thread(target=users.live, args=(user, begun + seconds)) for user in SECRETS]
        for one in running:
            one.start()
        while any(one.is_alive() for one in running):
            time.sleep(min(seconds / 40, 5.0))
            samples.append(taken()["resident"])
            if time.monotonic() - begun >= 60 * (len(minutes) + 1):
                minutes.append(samples[-1])
        wrong = users.held(model)
    turns, told, crossed, failed = users.turns, users.told, users.crossed, users.failed
    del users, scheduler
    gc.collect()
    end, quarter = taken(), max(len(samples) // 4, 1)
    second, last = (statistics.median(part) for part in (samples[quarter : 2 * quarter] or samples, samples[-quarter:]))
    return {
        "turns": turns,
        "told the own secret": told,
        "crossed": crossed[:5] + wrong,
        "failed": failed[:5],
        "resident MB at the start": start["resident"] / 1e6,
        "resident MB in the second quarter": second / 1e6,
        "resident MB in the last quarter": last / 1e6,
        "resident MB when closed": end["resident"] / 1e6,
        "resident MB after each minute": [round(resident / 1e6) for resident in minutes],
        "threads": [start["threads"], end["threads"]],
        "files": [start["files"], end["files"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--model", default="tiny", help="tiny, or a name that from_pretrained takes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    SPARE_PREFIXES.max_bytes = RECENT_BYTES
    model = states.model() if given.model == "tiny" else mplus.MPlus.from_pretrained(given.model)
    print(json.dumps(soak(model, given.folder, given.seconds)))


if __name__ == "__main__":
    main()
