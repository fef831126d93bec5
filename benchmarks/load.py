"""Many users of one server for minutes: whose words they get, what is kept, how long it takes, how much it needs.

    python benchmarks/load.py [--users 64] [--seconds 600] [--model small]

Starts ``mplus serve`` on this machine as a process of its own. Every user has a key, a memory and a connection. In each
round all of them at once write a pass word, ask for it, forget an older one and read back what is held; then they ask
for ``--phase`` seconds, one streamed answer after the other, which is measured. In turn with that the bare scheduler
answers the same questions from the same memories in another process, without HTTP, keys or store, so that both sides
see the same machine; while one works the other one sleeps. Every answer must name its user's sources alone, and hold
nobody else's pass word. At the end the server is stopped, and what lies on disk is compared with what was acknowledged.

``--model small`` is a random model of some million parameters; a model with trained memory also says the pass words.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import report
from load_users import PORT, Answered, Connection, Questions, User, users

import mplus


def loaded(name: str) -> mplus.MPlus:
    """A model by name; "tiny" and "small" are random ones."""
    if name not in ("tiny", "small"):
        return mplus.MPlus.from_pretrained(name, device="cpu")
    from mplus.testing import tiny_model

    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return tiny_model() if name == "tiny" else tiny_model(**sizes, **heads)


# --- the two sides ------------------------------------------------------------------------------------


def serve(options: Any) -> None:
    """The side of the server."""
    from mplus_integrations.server.heap import share_heap
    from mplus_integrations.server.running import run
    from mplus_integrations.server.settings import ServeSettings

    share_heap()  # as mplus serve does, before there is a model and with it threads
    settings = ServeSettings(
        model=options.model,
        memories=options.folder / "memories",
        keys=options.folder / "keys.json",
        port=PORT,
        max_running=options.max_running,
    )
    run(settings, model=loaded(options.model))


def bare(options: Any) -> None:
    """The side of the scheduler alone: answers for so many seconds for each line of standard input that says so."""
    model, names = loaded(options.model), [user.name for user in users(options.users)]
    store = mplus.MemoryStore(options.folder / "memories")
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, turn = map(float, line.split())
        memories, cpu = [store.load(name, model) for name in names], time.process_time()
        answered = alone(model, memories, seconds, int(turn), options)
        print(json.dumps({"answered": answered, "cpu": time.process_time() - cpu}), flush=True)


def alone(model: mplus.MPlus, memories: list[mplus.Memory], seconds: float, turn: int, options: Any) -> list[Answered]:
    """What a scheduler answers in some seconds to as many users as there are memories."""
    answered = list[Answered]()
    scheduler, ends = model.serve(max_running=options.max_running), time.monotonic() + seconds

    def user(memory: mplus.Memory, number: int) -> None:
        questions = Questions(number, turn)
        while time.monotonic() < ends:
            started, first = time.monotonic(), None
            prompt = [{"role": "user", "content": next(questions)}]
            stream = scheduler.stream(memory, prompt, max_new_tokens=options.answer_tokens)
            for _ in stream:
                first = first or time.monotonic()
            now = time.monotonic()
            answered.append(Answered(started, first or now, now, stream.generation.completion_tokens))

    threads = [threading.Thread(target=user, args=(one, number)) for number, one in enumerate(memories)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scheduler.close()
    return answered


def measured(phases: list[list[Answered]], cpu: list[float], seconds: float) -> dict[str, Any]:
    """Figures of some phases of one side. Tokens count where they fall between a phase's first text and its end."""
    rates: list[float] = []
    for phase in phases:
        begun = min(one.first for one in phase)
        ended = min(one.asked for one in phase) + seconds
        within = sum(
            one.tokens * max(min(one.ended, ended) - max(one.first, begun), 0) / max(one.ended - one.first, 1e-6)
            for one in phase
        )
        rates.append(within / (ended - begun))
    waits = sorted(one.first - one.asked for phase in phases for one in phase)
    tokens = sum(one.tokens for phase in phases for one in phase)
    return {
        "answers": len(waits),
        "tokens": tokens,
        "tokens_per_second": statistics.fmean(rates),
        "tokens_per_cpu_second": tokens / sum(cpu),
        "first_token_p50": statistics.median(waits),
        "first_token_p99": waits[min(int(len(waits) * 0.99), len(waits) - 1)],
        "rates": [round(rate, 1) for rate in rates],
    }


# --- the whole ----------------------------------------------------------------------------------------


async def everyone(options: Any, server: int, other: subprocess.Popen[str]) -> dict[str, Any]:
    """All rounds; the figures of both sides."""
    people: list[User] = options.people
    lines = [Connection(user.key) for user in people]
    phases: list[list[Answered]] = []
    theirs: list[list[Answered]] = []
    cpu: list[float] = []
    their_cpu: list[float] = []
    resident: list[float] = []
    anonymous: list[float] = []
    writing = serving = 0.0
    turn = 0
    while serving < options.seconds:
        begun = time.monotonic()
        await asyncio.gather(*(one.write_and_look(line, turn) for one, line in zip(people, lines, strict=True)))
        writing += time.monotonic() - begun
        sides = [True, False] if turn % 2 else [False, True]
        for is_server in sides:
            if is_server:
                spent, ends = cpu_of(server), time.monotonic() + options.phase
                talks = (u.talk(line, turn, ends, options.answer_tokens) for u, line in zip(people, lines, strict=True))
                phases.append([one for answered in await asyncio.gather(*talks) for one in answered])
                cpu.append(cpu_of(server) - spent)
            else:
                found = json.loads(await asyncio.to_thread(told, other, f"{options.phase} {turn}"))
                theirs.append([Answered(*one) for one in found["answered"]])
                their_cpu.append(found["cpu"])
        serving = writing + len(phases) * options.phase
        resident.append(resident_mib(server))
        anonymous.append(resident_mib(server, "RssAnon"))
        ours, bare_ones = (
            measured(phases[-1:], cpu[-1:], options.phase),
            measured(theirs[-1:], their_cpu[-1:], options.phase),
        )
        print(
            f"round {turn}: {ours['tokens_per_second']:.1f} and bare {bare_ones['tokens_per_second']:.1f} tokens/s, "
            f"{resident[-1]:.0f} MiB, load {os.getloadavg()[0]:.0f}, {sum(len(u.wrong) for u in people)} wrong",
            file=sys.stderr,
            flush=True,
        )
        turn += 1
    served, alone = measured(phases, cpu, options.phase), measured(theirs, their_cpu, options.phase)
    pairs = [a / b for a, b in zip(served["rates"], alone["rates"], strict=True) if b > 0]
    return {
        "users": len(people),
        "seconds_under_load": round(serving),
        "rounds": turn,
        "server": served,
        "bare_scheduler": alone,
        "ratio": served["tokens_per_second"] / alone["tokens_per_second"] if pairs else None,
        "ratio_median_of_rounds": statistics.median(pairs) if pairs else None,
        "ratio_per_cpu_second": served["tokens_per_cpu_second"] / alone["tokens_per_cpu_second"],
        "resident_mib": [round(one) for one in resident],
        "anonymous_mib": [round(one) for one in anonymous],
    }


def told(process: subprocess.Popen[str], line: str) -> str:
    """What the other side says to a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int, kind: str = "VmRSS") -> float:
    """MiB of a process in host memory; of the kind "RssAnon" those without mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


def on_disk(options: Any) -> list[str]:
    """What is wrong with the memories, as the next process finds them."""
    model, store = loaded(options.model), mplus.MemoryStore(options.folder / "memories")
    for user in options.people:
        user.compare({one.name: "".join(one.texts) for one in store.load(user.name, model).sources()})
    return [one for user in options.people for one in user.wrong]


def main() -> None:
    """Both sides, in turn."""
    parser = report.parser(__doc__)
    parser.set_defaults(model="small")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600, help="under load, the bare scheduler's time not counted")
    parser.add_argument("--phase", type=float, default=30, help="seconds of each side in turn")
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--max-running", type=int, default=16)
    parser.add_argument("--role", choices=["serve", "bare"], help="one side alone; the script starts both itself")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.role is not None:
        (serve if options.role == "serve" else bare)(options)
        return
    with tempfile.TemporaryDirectory(prefix="mplus-load-") as folder:
        options.folder = Path(folder)
        found = both(options)
    print(json.dumps(found, indent=1))
    report.write("load", found, options.output)


def both(options: Any) -> dict[str, Any]:
    """Start both sides, measure, and look at what is left."""
    from mplus_integrations.server.keys import KeyRing

    ring = KeyRing(options.folder / "keys.json")
    options.people = users(options.users)
    for user in options.people:
        user.key, user.model = ring.add(user.name)[1], options.model
    command = [sys.executable, __file__, "--model", options.model, "--folder", str(options.folder)]
    command += [
        f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("users", "max_running", "answer_tokens")
    ]
    with (options.folder / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--role", "serve"], stdout=log, stderr=log)
    other = subprocess.Popen([*command, "--role", "bare"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        asyncio.run(ready())
        found = asyncio.run(everyone(options, server.pid, other))
        server.send_signal(signal.SIGTERM)
        found["exit_of_server"] = server.wait(timeout=120)
    finally:
        for process in (server, other):
            process.kill()
            process.wait()
    return found | {
        "wrong": on_disk(options),
        "statuses": dict(sum((user.statuses for user in options.people), Counter[str]())),
        "pass_words_said": [sum(u.spoken for u in options.people), sum(u.asked_for_word for u in options.people)],
    }


async def ready() -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            if (await Connection("").ask("GET", "/readyz"))[0] == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.5)
    raise TimeoutError("the server was not ready in five minutes")


if __name__ == "__main__":
    main()
