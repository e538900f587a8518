"""One engine for one set of weights: many callers, one worker.

Callers pull: `pull` asks for the next event of a request and waits for it. A single worker thread,
there only while requests are alive, does what is asked for: in turns one window of one prompt that
is being read, then one token for every answer that is being decoded, all in one forward pass. So
a newcomer's reading is handed over window by window, nothing is decoded that nobody asked for
(but for the few pieces of `_AHEAD`), and closing or cancelling a request stops its work within one
window or token. What fails in one request ends that request.

Two requests for the same unread prefix read it once: the second waits for the first. Knows
requests and threads; what is done for a request is in `runner`.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from pacellm_rag.errors import CancelledError, DeadlineExceededError
from pacellm_rag.models.engine_job import Job
from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.request import Event, Request
from pacellm_rag.models.runner import RequestRunner, is_out_of_memory

__all__ = ["Engine", "live_engines"]

_AHEAD = 4  # pieces that an answer may be ahead of its caller
_LINGER = 2.0  # seconds that the worker waits for more before it ends
_POLL = 0.5  # seconds between looks at requests whose callers do not wait
_STOPPED = "The engine has been stopped, as the process ends; nothing more is read or answered."

T = TypeVar("T")

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_workers: set[threading.Thread] = set()  # those that may still be alive


def live_engines() -> list[Engine]:
    """All engines of this process."""
    return list(_engines)


@atexit.register
def _stop_all() -> None:
    """A thread that is inside of torch when the interpreter goes would bring the process down."""
    for engine in list(_engines):
        engine.stop()
    for worker in list(_workers):
        worker.join()


class Engine:
    """Gives every request its turns; see the module.

    Args:
        runner: does the work.
        window: tokens per forward pass while reading.
        limits: what may be taken.
    """

    def __init__(self, runner: RequestRunner, *, window: int, limits: EngineLimits) -> None:
        self.runner = runner
        self.window = window
        self.limits = limits
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._queue: deque[Request] = deque()
        self._running: list[Request] = []
        self._jobs: deque[Job] = deque()
        self._worker: threading.Thread | None = None
        self._turn = 0
        self._stopping = False
        _engines.add(self)

    # ---- for callers

    def pull(self, request: Request) -> Event | None:
        """Waits for the next event of a request; None at its end.

        Raises:
            PaceLLMError: what ended the request, if it was not its regular end.
        """
        ready = threading.Event()
        while True:
            ready.clear()
            event = self.poll(request, ready.set)
            if event is not None or request.ended:
                return event
            ready.wait()

    def poll(self, request: Request, wake: Callable[[], object]) -> Event | None:
        """The next event of a request if it is there; else asks for it.

        Returns None with `request.ended` set at the end, and without it where the event is still
        to come: then `wake` will be called, from another thread.

        Raises:
            PaceLLMError: what ended the request, if it was not its regular end.
        """
        with self._lock:
            event = request.next_event(wake)
            if event is None and not request.ended:
                request.ahead = max(request.ahead, _AHEAD)
                self._submit(request)
            elif request.wants_work:
                self._work.notify()
            return event

    def start(self, request: Request) -> None:
        """Works on a request to its end without being asked for events."""
        with self._lock:
            request.ahead = math.inf
            self._submit(request)

    def close(self, request: Request) -> None:
        """Ends a request within the window or token that is under way; does not wait."""
        request.closed = True  # first, and without the lock: garbage collection may call this
        if self._lock.acquire(blocking=False):
            try:
                if not request.submitted:
                    request.end()
                self._work.notify()
            finally:
                self._lock.release()

    def wait(self, request: Request) -> None:
        """Waits until a request that was closed has left."""
        gone = threading.Event()
        while True:
            gone.clear()
            with self._lock:
                request.listen(gone.set)
                if request.ended or not request.submitted or self._stopping:
                    return
                self._ensure_worker()
            gone.wait()

    def call(self, work: Callable[[], T]) -> T:
        """Runs something on the model between forward passes, and waits for it."""
        job = Job(work)
        with self._lock:
            self._refuse_if_stopped()
            self._jobs.append(job)
            self._ensure_worker()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]

    def forget(self, documents: Collection[str]) -> None:
        """Forgets what was read of some documents, and keeps nothing of what is being read of them.

        Waits for the window or token that is under way, and for what is being written to disk.
        What is on disk by then is for `readings.forget_documents` to remove.
        """
        archive = self.runner.archive

        def work() -> None:
            with self._lock:
                here = [*self._queue, *self._running]
            self.runner.forget(documents, here)

        if not self._stopping:
            self.call(work)
        if archive is not None:
            archive.forget(documents)

    def stop(self) -> None:
        """Ends the worker after the window or token that is under way, for good.

        Whoever comes later gets a `CancelledError`.
        """
        with self._lock:
            self._stopping = True
            worker = self._worker
            self._work.notify()
        if worker is not None:
            worker.join()

    @property
    def idle(self) -> bool:
        """Whether no request is there, working, waiting or between two pulls."""
        with self._lock:
            return not self._running and not self._queue

    def _refuse_if_stopped(self) -> None:
        # a daemon thread goes down with the process, and without a word, rather waiting than
        # printing a traceback into its end
        if self._stopping and not threading.current_thread().daemon:
            raise CancelledError(_STOPPED)

    def _submit(self, request: Request) -> None:
        if not request.ended:
            self._refuse_if_stopped()
        if not request.submitted and not request.ended:
            waiting = sum(1 for other in self._queue if not other.closed)
            begun = sum(1 for other in self._running if not other.closed)
            self.limits.check_room(waiting, begun, free=max(self._free_places(), 0))
            request.submitted = True
            self._queue.append(request)
        self._ensure_worker()

    def _ensure_worker(self) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._run, name="pacellm-engine", daemon=True)
            self._worker.start()
            _workers.intersection_update([w for w in _workers if w.is_alive()])
            _workers.add(self._worker)
        self._work.notify()

    # ---- the worker

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            try:
                self._sweep()
                with self._lock:
                    if self._stopping:
                        return
                    if not self._has_work():
                        here = bool(self._running or self._queue)
                        if not here and time.monotonic() - idle_since > _LINGER:
                            self._worker = None
                            return
                        self._work.wait(_POLL)
                        continue
                idle_since = time.monotonic()
                self._round()
            except Exception as error:  # a fault of ours: nobody must wait for a dead worker
                self._end_all(error)

    def _round(self) -> None:
        """A turn for everybody; its own function, so that nothing is held between turns."""
        with self._lock:
            job = self._jobs.popleft() if self._jobs else None
            newcomers = self._admit()
        if job is not None:
            try:
                self.runner.disband()
            finally:
                job.run()
        for request in newcomers:
            self._guarded(request, self.runner.begin)
        self._read()
        self._decode()

    def _end_all(self, error: Exception) -> None:
        """Ends every request and job with an error."""
        self.runner.forget_batch()
        with self._lock:
            jobs, here = [*self._jobs], [*self._queue, *self._running]
            self._jobs.clear()
            self._queue.clear()
            self._running.clear()
        for job in jobs:
            job.error = error
            job.done.set()
        for request in here:
            request.end(error)

    def _has_work(self) -> bool:
        if self._jobs or any(request.wants_work for request in self._running):
            return True
        return bool(self._queue) and self._free_places() > 0

    def _free_places(self) -> int:
        # Without those whose callers pause: where one caller takes words of many answers in turn,
        # these would wait for places that only their own caller can make free.
        return self.limits.max_running - sum(1 for r in self._running if r.wants_work)

    def _admit(self) -> list[Request]:
        """Takes waiting requests in, in the order in which they came."""
        admitted = []
        for _ in range(min(max(self._free_places(), 0), len(self._queue))):
            request = self._queue.popleft()
            self._running.append(request)
            admitted.append(request)
        for place, request in enumerate(self._queue, 1):
            request.tell_place(place)
        return admitted

    def _sweep(self) -> None:
        """Ends what is cancelled, closed or too late."""
        now = time.monotonic()
        with self._lock:
            here = [*self._queue, *self._running]
        for request in here:
            if request.closed:
                self._leave(request)
            elif request.cancelled:
                self._leave(request, CancelledError(f"Cancelled while {request.doing}."))
            elif request.deadline is not None and now > request.deadline:
                self._leave(
                    request,
                    DeadlineExceededError(
                        f"The time for this request was over while {request.doing}. Allow more "
                        "(timeout), or ask for less."
                    ),
                )

    def _leave(self, request: Request, error: BaseException | None = None) -> None:
        """Takes a request out: what it has read stays known, its branch goes."""
        try:
            self.runner.part(request)
        except Exception as trouble:
            error = error or trouble
        with self._lock:
            if request in self._queue:
                self._queue.remove(request)
            if request in self._running:
                self._running.remove(request)
            request.end(error)
        self.runner.cache.shrink()

    def _guarded(self, request: Request, work: Callable[[Request], T]) -> T | None:
        """Does some work of one request, whose errors are its own.

        When memory runs out, what nobody uses is forgotten, and the work tried once more.
        """
        if request.ended:
            return None
        for again in (True, False):
            try:
                return work(request)
            except Exception as error:
                if not is_out_of_memory(error):
                    self._leave(request, error)
                elif again and self.runner.cache.shrink(0):
                    continue
                else:
                    self._leave(request, self.runner.memory_error(request, error))
                return None
        return None

    def _read(self) -> None:
        """One window of the prompt that has waited longest."""
        reading = [r for r in self._running if r.is_reading and r.wants_work]
        reading.sort(key=lambda request: request.turn)
        for request in reading:
            if any(self.runner.needs_what_is_read(request, other) for other in reading):
                continue
            if request.turn == 0:
                self._guarded(request, self.runner.begin_again)
            if request.ended:
                return
            self._turn += 1
            request.turn = self._turn
            others = any(r.is_answering and r.wants_work for r in self._running)
            window = max(self.window // 4, 1) if others else self.window
            if self._guarded(request, partial(self.runner.read_window, window=window)):
                self._leave(request)
            self._leave_if_done(request)
            return

    def _decode(self) -> None:
        """One token for every answer that is asked for."""
        ready = [r for r in self._running if r.is_answering and r.wants_work and not r.unwanted]
        ready.sort(key=lambda request: request.turn)
        ready = ready[: self.limits.max_running]
        if not ready:
            return  # before the model is asked for anything, which may fail
        for request in ready:
            self._turn += 1
            request.turn = self._turn
        groups = [ready] if self.runner.decoder.batches else [[request] for request in ready]
        for group in filter(None, groups):
            # in the order of their coming, so that the batch stays the one of the last step
            group.sort(key=self._running.index)
            try:
                logits = self.runner.decode(group)
            except Exception:  # of one of them, or of all: each alone finds its own
                self.runner.disband()
                for request in group:
                    self._decode_alone(request)
                continue
            for row, request in enumerate(group):
                own = logits[row : row + 1]
                self._guarded(request, partial(self.runner.take, logits=own))
                self._leave_if_done(request)

    def _decode_alone(self, request: Request) -> None:
        # in two steps, so that a second try of the one does not repeat the other
        logits = self._guarded(request, lambda one: self.runner.decode([one]))
        if logits is not None:
            self._guarded(request, partial(self.runner.take, logits=logits))
            self._leave_if_done(request)

    def _leave_if_done(self, request: Request) -> None:
        answering = request.answering
        if not request.ended and answering is not None and answering.finish_reason is not None:
            self._leave(request)
