"""Removes the waits from MiniStack's Runtime API. AWS has none of them.

MiniStack sends an event in two packets, and the second one waits 40 ms for the function's acknowledgement of the
first one (Nagle's algorithm and delayed acknowledgements). After the function's response, it waits for output of the
function: 50 ms if there is none. What a function writes before its response is in the pipe when the response arrives,
so it can be read from there at once.
"""

import os
import select
import threading
from contextlib import suppress
from queue import Empty, Full

READ_BYTES = 65536


def install():
    """Changes MiniStack. Must be called before a function is invoked."""
    from ministack.core.lambda_runtime import ProvidedWorker

    build, wait_for_output = ProvidedWorker._build_handler_class, ProvidedWorker._drain_stderr_bounded

    def build_without_nagle(worker, generation, pending):
        handler = build(worker, generation, pending)
        handler.disable_nagle_algorithm = True
        return handler

    def pump(worker, stream, lines):
        worker._output = output = Output(stream, lines)
        output.pump()

    def drain(worker, **bounds):
        output = getattr(worker, "_output", None)
        # The thread of a new process may not have started yet.
        if output is None or output.lines is not worker._stderr_queue:
            return wait_for_output(worker, **bounds)
        output.read()
        return worker._drain_stderr()

    ProvidedWorker._build_handler_class = build_without_nagle
    ProvidedWorker._pump_output = pump
    ProvidedWorker._drain_stderr_bounded = drain


class Output:
    """The output of a process, which is split into lines and put into a queue. A full queue loses its oldest lines."""

    def __init__(self, stream, lines):
        self.lines = lines
        self._stream = stream
        self._rest = b""  # the start of a line that has not ended
        self._ended = False
        self._lock = threading.Lock()
        os.set_blocking(stream.fileno(), False)

    def pump(self):
        """Reads until the process closes the pipe, so that a process is never blocked by a full pipe."""
        # Only this thread closes the stream: it may be waiting for the stream while another one reads its end.
        with self._stream:
            poll = select.poll()
            poll.register(self._stream, select.POLLIN)
            while not self._ended:
                poll.poll()
                self.read()

    def read(self):
        """Puts the lines that the process has written so far into the queue."""
        with self._lock:
            while not self._ended:
                try:
                    data = os.read(self._stream.fileno(), READ_BYTES)
                except BlockingIOError:
                    return
                *complete, self._rest = (self._rest + data).split(b"\n")
                if not data:
                    self._ended = True
                    complete = [self._rest] if self._rest else []
                for line in complete:
                    self._put(line.decode(errors="replace").rstrip("\r"))

    def _put(self, line):
        while True:
            try:
                return self.lines.put_nowait(line)
            except Full:
                with suppress(Empty):  # the reader may have emptied the queue meanwhile
                    self.lines.get_nowait()
