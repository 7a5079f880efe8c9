"""The interpreter inside: one namespace, in which one piece of code after another runs.

It is a process of the guest: what it says of itself (values, tables, figures) is the guest's word. That a piece is over
it can say only with the token that came with it, and the supervisor stops it then, so that no thread goes on unwatched.
"""

from __future__ import annotations

import builtins
import posix
import sys
from posix import _exit

TYPE_CHECKING = False  # `typing` and `collections` would cost more time to import than all the rest
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any

_PIECE = 32 * 1024
_VALUE_CHARACTERS = 20_000
_ROWS, _COLUMNS, _CELL_CHARACTERS = 50, 30, 200
_FIGURES = 8
REAP = (1 << 64) - 1
"""In place of a size: let go of dead children, and say so."""
_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST


def serve(channel: _socket.socket) -> None:
    """Run what comes over the channel until it ends."""
    compile("0", "", "eval")  # the first takes a millisecond, here while the host still reads that all is well
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__builtins__"] = builtins
    for name in ("exit", "quit"):  # `site`, which is not run, would add them
        setattr(builtins, name, sys.exit)
    me, number = posix.getpid(), 0
    sources: dict[str, str] = {}
    while head := channel.recv(64):
        token, size = head[:16], int.from_bytes(head[16:24], "big")
        if size == REAP:
            _reap()
            channel.send(token + b"x.0")
            continue
        code = bytearray()
        while len(code) < size:
            code += channel.recv(_PIECE)
        number += 1

        def say(kind: bytes, data: bytes, token: bytes = token) -> None:
            for start in range(0, max(len(data), 1), _PIECE):
                piece = data[start : start + _PIECE]
                channel.send(token + kind + (b"+" if start + _PIECE < len(data) else b".") + piece)

        status = _run(bytes(code), main.__dict__, f"<cell {number}>", sources, say)
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                stream.flush()  # type: ignore[union-attr]  # None is caught as well
            except Exception:  # noqa: BLE001, S110 - the guest may have put anything there, and it is the guest's
                pass
        if posix.getpid() != me:  # a fork that ran to the end of its parent's code
            _exit(status)
        say(b"x", str(status).encode())


def _reap() -> None:
    """Let go of children that were killed when the last piece of code was over."""
    try:
        while posix.waitpid(-1, posix.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _run(
    code: bytes, names: dict[str, Any], name: str, sources: dict[str, str], say: Callable[[bytes, bytes], None]
) -> int:
    try:
        sources[name] = text = code.decode()
        statements, last = _compiled(text, name)
        if statements is not None:
            _execute(statements, names)
        if last is not None:
            value = _execute(last, names)
            if value is not None:
                names["_"] = value
                _show(value, say)
        _figures(say)
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return (left.code or 0) & 0xFF
        print(left.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - whatever the guest raises is its result
        _tell(error, sources)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _compiled(text: str, name: str) -> tuple[Any, Any]:
    """The statements, and the expression at the end; either may be None."""
    if "\n" not in text and "\\" not in text and text[:1] > " ":
        try:
            return None, compile(text, name, "eval", _AWAIT, dont_inherit=True)
        except SyntaxError:
            pass  # no expression: said below, if it is nothing else either
    import _ast  # a millisecond the first time, which one expression does not need

    tree = compile(text, name, "exec", _ONLY_AST | _AWAIT, dont_inherit=True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    code = None if last is None else _ast.Expression(last.value)
    return (
        compile(tree, name, "exec", _AWAIT, dont_inherit=True),
        code and compile(code, name, "eval", _AWAIT, dont_inherit=True),
    )


def _execute(code: Any, names: dict[str, Any]) -> Any:
    value = eval(code, names)  # noqa: S307 - this is what the sandbox is for
    if code.co_flags & 0x80:  # inspect.CO_COROUTINE: there was an await outside of a function
        import asyncio

        return asyncio.run(value)
    return value


def _tell(error: BaseException, sources: dict[str, str]) -> None:
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    try:
        import linecache
        import traceback

        for name, text in sources.items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        said = "".join(traceback.format_exception(type(error), error.with_traceback(trace), trace))
    except BaseException:  # noqa: BLE001 - the guest may have spoiled these modules, or have no descriptor left
        said = f"{type(error).__name__}: {error}\n"
    print(said, file=sys.stderr, end="")


def _show(value: Any, say: Callable[[bytes, bytes], None]) -> None:
    if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_frame" if _flat(value) else "iloc"):
        say(b"t", _table(value))
    text = value if type(value).__name__ == "Markdown" else repr(value)
    say(b"v", str(text)[:_VALUE_CHARACTERS].encode("utf-8", "backslashreplace"))


def _flat(value: Any) -> bool:
    return type(value).__name__ == "Series"


def _table(frame: Any) -> bytes:
    import json

    if _flat(frame):
        frame = frame.to_frame()
    total = len(frame)
    part = frame.iloc[:_ROWS, :_COLUMNS].reset_index()
    rows = [[str(cell)[:_CELL_CHARACTERS] for cell in row] for row in part.itertuples(index=False, name=None)]
    columns = [str(column)[:_CELL_CHARACTERS] for column in part.columns]
    return json.dumps({"columns": columns, "rows": rows, "total_rows": total}).encode()


def _figures(say: Callable[[bytes, bytes], None]) -> None:
    """Each open figure of matplotlib as a PNG; then they are closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not hasattr(pyplot, "get_fignums"):
        return
    import io

    for number in pyplot.get_fignums()[:_FIGURES]:
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, format="png")
        say(b"p", file.getvalue())
    pyplot.close("all")
