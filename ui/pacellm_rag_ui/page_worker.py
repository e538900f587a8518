"""The page process: limits itself, gets one request and one file, draws one page, ends.

Knows pypdfium2 and Pillow. It is started ahead of need and waits for its request, so that its start
costs nobody time; and it never sees a second file, so that a hostile one can only harm itself.
Run by `page_process` only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import warnings
from typing import BinaryIO

from pacellm_rag.documents.messages import read_frame, write_frame
from pacellm_rag_ui.page_messages import (
    LONGEST_REQUEST,
    PageRequest,
    RenderLimits,
    Undrawn,
    encode_reply,
)

__all__ = ["main"]


def main() -> None:
    """Serves one request from standard input to standard output."""
    limits = RenderLimits(**json.loads(sys.argv.pop(1)))
    output = _claim_standard_output()
    _limit("RLIMIT_AS", limits.memory_bytes)
    _limit("RLIMIT_CPU", limits.cpu_seconds)
    _limit("RLIMIT_CORE", 0)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with contextlib.suppress(BrokenPipeError):
        try:
            drawing = importlib.import_module("pacellm_rag_ui.page_drawing")
            _limit("RLIMIT_FSIZE", 0)  # after the imports, which may leave compiled modules
            _limit("RLIMIT_NPROC", 0)
            body = read_frame(sys.stdin.buffer, LONGEST_REQUEST)
            data = read_frame(sys.stdin.buffer, limits.file_bytes) if body else None
            if body and data is not None:
                request = PageRequest(**json.loads(body))
                reply, image = drawing.draw_page(data, request, limits)
                write_frame(output, encode_reply(reply))
                write_frame(output, image)
        except ImportError:
            write_frame(output, encode_reply(Undrawn("start")))
        except MemoryError:
            write_frame(output, encode_reply(Undrawn("memory")))
        except BrokenPipeError:
            raise
        except Exception:
            write_frame(output, encode_reply(Undrawn("damaged")))
    os._exit(0)  # tearing pdfium down can crash; nobody waits for it


def _claim_standard_output() -> BinaryIO:
    """Takes standard output for the reply; whatever else prints, prints to nowhere."""
    output = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return output


def _limit(name: str, most: int) -> None:
    if sys.platform != "win32":  # there the parent's clock is the only limit
        import resource

        kind = getattr(resource, name)
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            most = min(most, ceiling)
        with contextlib.suppress(ValueError, OSError):  # macOS knows RLIMIT_AS by name only
            resource.setrlimit(kind, (most, ceiling))
