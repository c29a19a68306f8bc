"""Tests that a function's output is complete when its response arrives."""

import os
import queue
import threading
import unittest
from types import SimpleNamespace

from runtime_api import Output, install


class Outputs(unittest.TestCase):
    def setUp(self):
        reading, self.writing = os.pipe()
        self.lines = queue.Queue(maxsize=3)
        stream = os.fdopen(reading, "rb")
        self.addCleanup(stream.close)
        self.output = Output(stream, self.lines)

    def read(self):
        self.output.read()
        return [self.lines.get_nowait() for _ in range(self.lines.qsize())]

    def end(self):
        os.close(self.writing)
        self.writing = None

    def tearDown(self):
        if self.writing is not None:
            self.end()

    def test_lines_are_read_at_once(self):
        os.write(self.writing, b"one\r\ntwo\n")
        self.assertEqual(["one", "two"], self.read())
        self.assertEqual([], self.read())

    def test_a_line_that_is_written_in_parts_stays_one_line(self):
        os.write(self.writing, "größ".encode()[:3])
        self.assertEqual([], self.read())
        os.write(self.writing, "größ".encode()[3:] + b"er\nrest")
        self.assertEqual(["größer"], self.read())
        self.end()
        self.assertEqual(["rest"], self.read())

    def test_a_full_queue_loses_its_oldest_lines(self):
        os.write(self.writing, b"1\n2\n3\n4\n")
        self.assertEqual(["2", "3", "4"], self.read())

    def test_the_pump_reads_more_than_a_pipe_holds_and_ends_with_the_process(self):
        pump = threading.Thread(target=self.output.pump, daemon=True)
        pump.start()
        os.write(self.writing, b"x" * 200_000 + b"\n")
        self.end()
        pump.join(timeout=10)
        self.assertFalse(pump.is_alive())
        self.assertEqual(["x" * 200_000], self.read())

    def test_a_worker_has_the_output_of_its_own_process(self):
        from ministack.core.lambda_runtime import ProvidedWorker

        names = ("_build_handler_class", "_pump_output", "_drain_stderr_bounded")
        for name in names:
            self.addCleanup(setattr, ProvidedWorker, name, getattr(ProvidedWorker, name))
        install()
        reading, writing = os.pipe()
        lines = queue.Queue()
        worker = SimpleNamespace(_stderr_queue=lines, _drain_stderr=lambda: lines.get_nowait())
        pump = threading.Thread(target=ProvidedWorker._pump_output, args=(worker, os.fdopen(reading, "rb"), lines))
        pump.start()
        while not hasattr(worker, "_output"):
            pass
        os.write(writing, b"a line\n")
        self.assertEqual("a line", ProvidedWorker._drain_stderr_bounded(worker))
        os.close(writing)
        pump.join(timeout=10)
        self.assertFalse(pump.is_alive())


if __name__ == "__main__":
    unittest.main()
