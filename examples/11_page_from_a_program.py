"""The page, driven by a program: files sent, a question asked, an answer stopped.

Whoever has `pacellm-rag-ui` running already needs the lines with `client` only. Here a server is
started on a free port for as long as the example runs. On a server with accounts, log in by
`Client(url, auth=("name", "password"))`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradio_client import Client, handle_file

FILE = Path(__file__).parent / "documents" / "equipment-manual.pdf"


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a server of our own."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "pacellm_rag_ui", "--port", "0", "--data", data]
        server = subprocess.Popen(
            [*command, "--max-new-tokens", "40"], stderr=subprocess.PIPE, text=True
        )
        try:
            assert server.stderr is not None
            found = (re.search(r"Listening on (http://\S+)", line) for line in server.stderr)
            yield next(match.group(1) for match in found if match)
        finally:
            server.terminate()
            server.communicate()


def main() -> None:
    """Uploads, asks, stops."""
    with running_server() as url:
        client = Client(url, verbose=False)

        for report in client.predict([handle_file(FILE)], api_name="/upload"):
            print(f"{report['name']}: {report['state']}. {report['message']}")

        view = {}
        for view in client.submit(
            "To what torque are the coupling bolts tightened?", api_name="/ask"
        ):
            print(f"  {view['state']} {view['status']}".rstrip())
        print(view["text"] or view["error"])
        for citation in view["citations"]:
            print(f"  {citation['title']}, page {citation['page']}: {citation['quote']}")

        job = client.submit("List every maintenance interval.", api_name="/ask")
        for view in job:
            if view["state"] == "answering":
                client.predict(api_name="/stop")
        print(f"The second answer was {view['state']} after: {view['text']}")


if __name__ == "__main__":
    main()
