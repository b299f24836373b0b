"""How a vtools process reports and exits: exit status, signals, and children that die with their parent."""

import contextlib
import functools
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


class Failure(Exception):
    """Bad data or a failed step: one line for the user, exit 1."""

    exit_code = 1


class UsageFailure(Failure):
    """The command line is wrong: exit 2."""

    exit_code = 2


class TryAgain(Failure):
    """Nothing is wrong, but try again later (lock held, preempted and saved): exit 75, EX_TEMPFAIL."""

    exit_code = 75


class Interrupted(BaseException):
    """A signal asked the process to end; output is cleaned up on the way out."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def die_of(signum: int) -> NoReturn:
    """Die of the signal itself, so that shells see it and stop their loops. Works from any thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, signal.SIG_DFL)
    else:  # outside the main thread Python does not allow it
        import ctypes

        ctypes.CDLL(None).signal(signum, 0)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)  # only if the signal is blocked


_holding = False
_held: list[int] = []  # signals that arrived while held back


def _raise_interrupted(signum: int, frame: object) -> None:
    if _holding:
        _held.append(signum)
    else:
        raise Interrupted(signum)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back Interrupted until the end of the block, so that what it creates is sure to be cleaned up.

    Blocks are short and do not nest; only the main thread ever sees Interrupted.
    """
    global _holding
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _holding = True
    try:
        yield
    finally:
        _holding = False
        if _held:
            raise Interrupted(_held.pop())


CLEAR = "\r\x1b[K"  # the line of a terminal
# Controls (except tab and newline), line separators and the marks that turn the direction of writing.
_STEERING = ((0, 9), (11, 32), (127, 160), (0x61C, 0x61D), (0x200E, 0x2010), (0x2028, 0x202F), (0x2066, 0x206A))
_SHOWN = {code: f"\\u{code:04x}" for first, end in _STEERING for code in range(first, end)}


def shown(text: str) -> str:
    """Text from outside as it may appear on a terminal: what would steer it, or mislead its reader, as `\\uXXXX`.

    JSON that is shown stays the same JSON.
    """
    return text.encode("utf-8", "backslashreplace").decode().translate(_SHOWN)


def say(tool: str, text: str) -> None:
    """Print a line for people, on stderr; on a terminal in place of a progress bar."""
    print(f"{CLEAR if sys.stderr.isatty() else ''}vtools {tool}: {shown(text)}", file=sys.stderr)


def announce(tool: str, text: str) -> None:
    """`say` from within a signal handler, which may have come while another line is written."""
    clear = CLEAR if os.isatty(2) else ""
    os.write(2, f"{clear}vtools {tool}: {shown(text)}\n".encode())


def install(extra: str) -> str:
    """The command that installs an extra. On the package index, `vtools` is somebody else's."""
    return f"pip install 'vtools-chat[{extra}]'"


def missing_extra(module: str, extra: str, what: str) -> Failure:
    """The error for an optional library that is not installed."""
    return Failure(f"{what} needs {module}: {install(extra)}")


# Modules of the extras: a bare `import torch` deep inside a tool ends in advice, not in a traceback.
EXTRAS = {
    "torch": "train", "sentencepiece": "train", "accelerate": "train", "flash_attn": "flash-attn",
    "transformers": "train", "safetensors": "train", "gguf": "weights", "numpy": "weights",
    "blake3": "weights", "peft": "train", "huggingface_hub": "hub", "pyarrow": "hub", "starlette": "serve",
    "prometheus_client": "serve", "h11": "serve", "uvicorn": "serve", "openai": "judge", "prompt_toolkit": "judge",
    "turbohtml": "fast", "pycld2": "filters", "rensa": "filters", "matplotlib": "plot",
}  # fmt: skip


def command(tool: str, function: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a tool's function so that it always exits by the rules."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        verbose = bool(kwargs.get("verbose"))
        for name in ("stdout", "stderr"):  # closed by the caller (2>&-): must not be None
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # respect nohup
                signal.signal(signum, _raise_interrupted)
        with signals_held():  # orjson crashes if an exception meets it while it is imported
            import orjson  # noqa: F401
        caught: BaseException
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
            return
        except Interrupted as interrupt:
            import traceback

            # A `with` that was still being entered cleans up only now, when its frame is freed.
            traceback.clear_frames(interrupt.__traceback__)
            die_of(interrupt.signum)
        except KeyboardInterrupt:
            die_of(signal.SIGINT)
        except BrokenPipeError:
            die_of(signal.SIGPIPE)
        except Failure as failure:
            caught, message, code = failure, str(failure), failure.exit_code
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            caught, message, code = error, str(missing_extra(error.name or "", extra, tool)), 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            caught, message, code = error, f"{where}{error.strerror or error}", 1
        except RecursionError as error:
            caught, message, code = error, "a value in the input is nested too deeply", 1
        except Exception as error:  # no traceback unless the user asked for it
            message = f"unexpected {type(error).__name__}: {error}; please report it with the output of -v"
            caught, code = error, 1
        if verbose:
            import traceback

            traceback.print_exception(caught)
        say(tool, message)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # Threads blocked in a read must not keep the process alive; nothing is buffered any more.
        sys.stderr.flush()
        os._exit(code)

    return wrapped


def die_with_parent(parent: int | None = None, signum: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends; `parent` is the expected parent's pid."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signum)
    if parent is not None and os.getppid() != parent:  # the parent died between fork and prctl
        os._exit(1)


def child_of_pool(parent: int) -> None:
    """Initialise a pool worker: Ctrl-C in the terminal is handled by the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    die_with_parent(parent)


_watched = False


def die_when_reader_goes() -> None:
    """Die of SIGPIPE as soon as the reader of stdout is gone, even while nothing is written."""
    global _watched
    if _watched or not stat.S_ISFIFO(os.fstat(1).st_mode):
        return
    _watched = True

    def watch() -> None:
        poll = select.poll()
        poll.register(1, 0)  # report only errors and hang-ups, which poll always does
        poll.poll()
        die_of(signal.SIGPIPE)

    threading.Thread(target=watch, daemon=True, name="reader-watch").start()
