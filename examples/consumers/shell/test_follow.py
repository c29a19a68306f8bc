"""follow.sh against an API in this process that pages as Fieldstation's does. Run by `make local-test`."""

import json
import os
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

SCRIPT = Path(__file__).with_name("follow.sh")
PAGE = 2


def event(sequence, kind="Measured", entity="acme.pump/a b&c"):
    name, _, key = entity.partition("/")
    return {
        "metadata": {
            "eventId": f"{entity} {sequence}", "type": kind, "sequence": sequence, "entity": {"type": name, "id": key},
            "occurredAt": int(time.time()) - 60 + sequence,
        },
        "data": {"text": "it's $HOME \"quoted\"\n"},
    }


class Api(BaseHTTPRequestHandler):
    """Events of the server's log. It refuses the first calls, or returns another body, if the server says so."""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if self.server.refusals > 0 or self.headers["Authorization"] != "Bearer the-key":
            self.server.refusals -= 1
            return self.reply(429 if self.server.refusals >= 0 else 401, {"title": "refused"})
        metadata = [event["metadata"] for event in self.server.log]
        if "entity" in query:
            page = [
                event for event, of in zip(self.server.log, metadata)
                if f"{of['entity']['type']}/{of['entity']['id']}" == query["entity"] and of["sequence"] > int(query["after"])
            ]
            return self.reply(200, {"events": page[:PAGE]})
        since, until = (time.strptime(query[name], "%Y-%m-%dT%H:%M:%SZ") for name in ("from", "to"))
        found = [
            event for event, of in zip(self.server.log, metadata)
            if of["type"] == query["type"] and since <= time.gmtime(of["occurredAt"]) <= until
        ][::-1]
        start = int(query.get("pageToken", 0))
        more = {"nextPageToken": str(start + PAGE)} if len(found) > start + PAGE else {}
        return self.reply(200, {"events": found[start:start + PAGE]} | more)

    def reply(self, status, body):
        text = (self.server.body or json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Prints nothing."""


class Following(unittest.TestCase):
    def setUp(self):
        self.server = HTTPServer(("127.0.0.1", 0), Api)
        self.server.log, self.server.refusals, self.server.body = [], 0, None
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.position = Path(folder.name) / "the position"

    def follow(self, kind, subject, key="the-key"):
        environment = os.environ | {
            "API_URL": f"http://127.0.0.1:{self.server.server_port}", "FIELDSTATION_API_KEY": key, "no_proxy": "127.0.0.1",
        }
        command = [SCRIPT, kind, subject, self.position, "0"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    def printed(self, *arguments):
        result = self.follow(*arguments)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_the_events_of_an_entity_are_printed_in_order_and_once(self):
        self.server.log = [event(sequence) for sequence in range(1, 6)] + [event(1, entity="acme.pump/other")]
        self.assertEqual(self.printed("entity", "acme.pump/a b&c"), self.server.log[:5])
        self.assertEqual(self.printed("entity", "acme.pump/a b&c"), [])
        late = event(6)
        self.server.log.append(late)
        self.assertEqual(self.printed("entity", "acme.pump/a b&c"), [late])

    def test_the_events_of_a_type_are_printed_oldest_first_and_once(self):
        self.server.log = [event(1), event(2, "Other"), event(3), event(4), event(5), event(6)]
        expected = [event for event in self.server.log if event["metadata"]["type"] == "Measured"]
        self.assertEqual(self.printed("type", "Measured"), expected)
        self.assertEqual(self.printed("type", "Measured"), [])
        late = event(7)
        self.server.log.append(late)
        self.assertEqual(self.printed("type", "Measured"), [late], "within the minute that is read again")

    def test_more_events_than_an_argument_can_hold_are_printed_once(self):
        # Linux limits an argument to 128 KiB. Both the first page and the ids in the position file are larger.
        self.server.log = [event(sequence) for sequence in range(1, 6)]
        for large in self.server.log:
            large["metadata"]["eventId"] += "x" * 70_000
        self.assertEqual(self.printed("type", "Measured"), self.server.log)
        self.assertGreater(self.position.stat().st_size, 200_000)
        late = event(6)
        self.server.log.append(late)
        self.assertEqual(self.printed("type", "Measured"), [late])
        self.position.unlink()
        self.assertEqual(self.printed("entity", "acme.pump/a b&c"), self.server.log)

    def test_a_response_that_is_not_json_ends_the_script_and_keeps_the_position(self):
        self.server.log = [event(1)]
        for kind, subject in (("type", "Measured"), ("entity", "acme.pump/a b&c")):
            self.printed(kind, subject)
            position = self.position.read_text()
            self.server.body = "<html>"
            self.assertNotEqual(self.follow(kind, subject).returncode, 0, kind)
            self.assertEqual(self.position.read_text(), position)
            self.server.body = None
            self.position.unlink()

    def test_a_call_that_a_rate_limit_refuses_is_repeated(self):
        self.server.log, self.server.refusals = [event(1)], 1
        result = self.follow("entity", "acme.pump/a b&c")
        self.assertEqual([json.loads(line) for line in result.stdout.splitlines()], self.server.log)

    def test_an_error_ends_the_script_and_keeps_the_position(self):
        self.server.log = [event(1)]
        self.printed("entity", "acme.pump/a b&c")
        result = self.follow("entity", "acme.pump/a b&c", key="another")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("401", result.stderr)
        self.assertEqual(self.position.read_text(), "1\n")
        self.position.unlink()
        result = self.follow("type", "Measured", key="another")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("401", result.stderr)
        self.assertFalse(self.position.exists())

    def test_other_arguments_print_the_usage(self):
        result = self.follow("site", "1")
        self.assertEqual(result.returncode, 2)
        self.assertIn("follow.sh entity <type>/<id> <position file> [seconds]", result.stderr)


if __name__ == "__main__":
    unittest.main()
