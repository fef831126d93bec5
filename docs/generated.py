"""Parts of the reference that are made from the code when the site is built: mkdocs calls ``on_page_markdown``."""

from collections.abc import Iterator
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page by what they stand for."""
    for mark, generate in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown


def command_line() -> str:
    """Every command of ``mplus`` with its arguments and options."""
    from mplus.cli.app import whole

    return "\n".join(_command("mplus", whole()))


def _command(path: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        context = command.context_class(command, info_name=path)
        for name in sorted(command.commands):
            yield from _command(f"{path} {name}", command.resolve_command(context, [name])[1])
        return
    arguments = [parameter for parameter in command.params if not parameter.opts[0].startswith("-")]
    options = [parameter for parameter in command.params if parameter.opts[0].startswith("-")]
    usage = " ".join([path, "[OPTIONS]", *(_argument(parameter) for parameter in arguments)])
    yield f"## {path}\n\n{command.help}\n\n```text\n{usage}\n```\n"
    yield "| | | default |\n| --- | --- | --- |"
    yield from (_row(f"`{_argument(parameter)}`", parameter) for parameter in arguments)
    for parameter in options:
        yield _row(", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts]), parameter)
    yield ""


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _row(name: str, parameter: Any) -> str:
    default = parameter.default
    shown = "required" if parameter.required else "" if default in (None, False, (), []) else f"`{default}`"
    return f"| {name} | {(parameter.help or '').replace('|', chr(92) + '|')} | {shown} |"


def memory_settings() -> str:
    """Every setting of ``MemoryConfig``: its default, and what the default model and the published model have."""
    from mplus.config import MemoryConfig

    columns = {
        "`MemoryConfig()`": MemoryConfig(),
        "`MemoryConfig.smol_135m()`": MemoryConfig.smol_135m(),
        "`MemoryConfig.published()`": MemoryConfig.published(),
    }
    rows = [f"| setting | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for name in MemoryConfig.model_fields:
        plain, *others = (repr(getattr(settings, name)) for settings in columns.values())
        shown = [plain, *(value if value == plain else f"**{value}**" for value in others)]
        rows.append(f"| `{name}` | {' | '.join(shown)} |")
    return "\n".join(rows)


def errors() -> str:
    """The tree of errors, as the head of ``mplus/errors.py`` draws it."""
    import mplus.errors

    return f"```text\n{(mplus.errors.__doc__ or '').split(chr(10), 1)[1].rstrip()}\n```"


GENERATED = {
    "<!-- generated: command line -->": command_line,
    "<!-- generated: memory settings -->": memory_settings,
    "<!-- generated: errors -->": errors,
}
