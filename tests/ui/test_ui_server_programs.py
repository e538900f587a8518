"""The whole server in a process of its own, driven by programs: gradio_client and plain HTTP."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from gradio_client import Client, handle_file
from gradio_client.exceptions import AuthenticationError
from served_page import ROOT, served
from ui_page_files import pdf

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui.auth import Accounts, account_line
from pacellm_rag_ui.command import check_exposure, command

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

ANSWER = "The contract ends in 2030 [D1 p2]."


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "report.pdf"
    path.write_bytes(pdf(["One apple a day.", "Page two.\nThe contract ends in 2030."]))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    data = tmp_path_factory.mktemp("data")
    with served(data, "--answer", ANSWER, "--word-pause", "0.05") as url:
        yield url, data


def connect(url: str, **more: Any) -> Client:
    return Client(url, verbose=False, analytics_enabled=False, **more)


def test_a_program_uploads_asks_and_gets_pages(server: tuple[str, Path], report: Path) -> None:
    url, data = server
    client = connect(url)
    [sent] = client.predict([handle_file(str(report))], api_name="/upload")
    assert (sent["name"], sent["state"], sent["pages"]) == ("report.pdf", "ready", 2)
    job = client.submit("When does the contract end?", api_name="/ask")
    views = list(job)
    assert views[-1]["state"] == "done"
    assert views[-1]["text"] == "The contract ends in 2030."
    assert views[-1]["citations"][0]["page"] == 2
    assert views[-1]["citations"][0]["document_id"] == sent["id"]
    assert [v for v in views if v["state"] == "answering"], "It did not stream."
    [own] = (path for path in (data / "incoming").iterdir() if path.is_dir())
    assert list(own.iterdir()) == [], "The upload was left lying."


def test_a_server_that_ends_leaves_nothing_on_its_way_and_spares_the_next(
    tmp_path: Path, report: Path
) -> None:
    data = tmp_path / "data"
    waiting = ("incoming", "gradio", "arrivals")

    def folders() -> int:
        return sum(path.is_dir() for part in waiting for path in (data / part).iterdir())

    with served(data, "--answer", ANSWER) as first:
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        client = connect(first)
        sent = httpx.post(
            f"{first}/files?name=a.pdf",
            headers={"x-pacellm-upload": "1"},
            content=report.read_bytes(),
            cookies=client.cookies,
        )
        assert sent.status_code == 200
        with served(data, "--answer", ANSWER) as second:
            assert folders() == 2 * len(waiting)
            other = connect(second)
            [theirs] = other.predict([handle_file(str(report))], api_name="/upload")
            assert theirs["state"] == "ready"
        assert folders() == len(waiting)
        [lying] = [
            path
            for path in (data / "incoming").rglob("*")
            if path.is_file() and path.suffix != ".lock"
        ]
        assert lying.read_bytes() == report.read_bytes(), "The second took the first one's upload."
        [mine] = client.predict([handle_file(str(report))], api_name="/upload")
        assert mine["state"] == "ready"
    assert folders() == 0


def test_a_program_opens_a_locked_file_with_its_password(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    url, _ = server
    path = tmp_path / "locked.pdf"
    path.write_bytes(pdf(["The contract ends in 2030."], password="open sesame"))
    client, file = connect(url), handle_file(str(path))
    [sent] = client.predict([file], api_name="/upload")
    assert (sent["state"], sent["message"]) == ("locked", "It is protected by a password.")
    [sent] = client.predict([file], "open sesame", api_name="/upload")
    assert (sent["state"], sent["pages"]) == ("ready", 1)


def test_two_programs_see_nothing_of_each_other(server: tuple[str, Path], report: Path) -> None:
    url, _ = server
    one, two = connect(url), connect(url)
    [sent] = one.predict([handle_file(str(report))], api_name="/upload")
    answer = two.submit("When?", api_name="/ask").result()
    assert answer["state"] == "failed"
    assert "document" in answer["error"].lower()
    mine = httpx.get(f"{url}/page/{sent['id']}/1.webp", cookies=one.cookies)
    theirs = httpx.get(f"{url}/page/{sent['id']}/1.webp", cookies=two.cookies)
    assert (mine.status_code, theirs.status_code) == (200, 404)


def test_the_same_file_of_many_at_once_reaches_all(server: tuple[str, Path], report: Path) -> None:
    url, _ = server
    states: list[str] = []

    def send() -> None:
        client = connect(url)
        for each in client.predict([handle_file(str(report))], api_name="/upload"):
            states.append(each["state"])

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert states == ["ready"] * 6


def test_a_program_stops_its_answer(tmp_path: Path, report: Path) -> None:
    words = " ".join(["word"] * 200)
    with served(tmp_path / "data", "--answer", words, "--word-pause", "0.1") as url:
        client = connect(url)
        client.predict([handle_file(str(report))], api_name="/upload")
        job = client.submit("Say a lot", api_name="/ask")
        for view in job:
            if view["state"] == "answering" and view["text"]:
                break
        assert client.predict(api_name="/stop") == {"stopped": True}
        assert list(job)[-1]["state"] == "stopped"
        assert client.predict(api_name="/stop") == {"stopped": False}


def test_only_three_endpoints_are_named(server: tuple[str, Path]) -> None:
    url, _ = server
    named = httpx.get(f"{url}/gradio_api/info", cookies=connect(url).cookies).json()
    assert sorted(named["named_endpoints"]) == ["/ask", "/stop", "/upload"]


def test_the_page_and_its_settings_name_no_other_host(server: tuple[str, Path]) -> None:
    url, _ = server
    page = httpx.get(f"{url}/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    config = httpx.get(f"{url}/config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert "http" not in json.dumps(config["head"])


@pytest.mark.parametrize("path", ["/openapi.json", "/monitoring", "/gradio_api/runs"])
def test_what_gradio_leaves_open_is_closed(server: tuple[str, Path], path: str) -> None:
    assert httpx.get(f"{server[0]}{path}").status_code == 404


def test_with_accounts_strangers_get_nothing_and_users_everything(
    tmp_path: Path, report: Path
) -> None:
    accounts = tmp_path / "accounts.txt"
    accounts.write_text(f"{account_line('ann', 'correct horse')}\n")
    data = tmp_path / "data"
    with served(data, "--auth", str(accounts), "--answer", ANSWER) as url:
        for path in ("/", "/config", "/gradio_api/info", "/openapi.json", "/gradio_api/runs"):
            assert httpx.get(f"{url}{path}").status_code == 401
        with pytest.raises(AuthenticationError):
            connect(url, auth=("ann", "wrong"))
        with pytest.raises(AuthenticationError):
            connect(url)
        client = connect(url, auth=("ann", "correct horse"))
        client.predict([handle_file(str(report))], api_name="/upload")
        assert client.submit("When?", api_name="/ask").result()["state"] == "done"
    with served(data, "--auth", str(accounts), "--answer", ANSWER) as url:  # all is still there
        again = connect(url, auth=("ann", "correct horse"))
        assert again.submit("When?", api_name="/ask").result()["state"] == "done"


def test_files_of_the_command_line_are_in_everybodys_list(tmp_path: Path, report: Path) -> None:
    from pacellm_rag_ui.library import Library
    from pacellm_rag_ui.shelf import Shelf

    with Library(tmp_path / "data") as library:
        shelf = Shelf(library, [report, report])
        for _ in range(2):
            shelf.offer("guest:a")
            shelf.offer("guest:b")
        assert [d.name for d in library.documents("guest:a")] == ["report.pdf"]
        library.remove_document("guest:a", library.documents("guest:a")[0].id)
        shelf.offer("guest:a")
        assert library.documents("guest:a") == [], "It came back although it was removed."
        assert len(library.documents("guest:b")) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-laptop.lan", ""])
def test_nobody_listens_to_others_without_accounts(host: str) -> None:
    with pytest.raises(ConfigurationError, match="--auth"):
        check_exposure(host, None)
    check_exposure(host, Path("accounts.txt"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_this_machine_alone_needs_no_accounts(host: str) -> None:
    check_exposure(host, None)


def test_the_command_refuses_with_a_message_and_no_traceback() -> None:
    done = CliRunner().invoke(command, ["--host", "0.0.0.0"])
    assert done.exit_code == 1
    assert "--auth" in done.output
    assert "Traceback" not in done.output


def test_several_models_are_named_by_repeating_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("pacellm_rag_ui.command.serve", lambda serving, *_: asked.append(serving))
    models = ["--model", "small", "--model", "large"]
    for given in (models, []):
        done = CliRunner().invoke(command, ["--data", str(tmp_path), "--pace", "off", *given])
        assert done.exit_code == 0, done.output
    named = [[(each.model, each.pace) for each in serving.models] for serving in asked]
    assert named == [[("small", "off"), ("large", "off")], [(None, "off")]]


def test_an_adapter_is_laid_on_the_first_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("pacellm_rag_ui.command.serve", lambda serving, *_: asked.append(serving))
    models = ["--model", "small", "--model", "large"]
    for given in ([*models, "--adapter", "owner/lora"], ["--adapter", "none"], models):
        done = CliRunner().invoke(command, ["--data", str(tmp_path), *given])
        assert done.exit_code == 0, done.output
    named = [[(each.model, each.adapter) for each in serving.models] for serving in asked]
    assert named == [
        [("small", "owner/lora"), ("large", "auto")],
        [(None, "none")],
        [("small", "auto"), ("large", "auto")],
    ]


def test_the_command_makes_a_line_of_an_accounts_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        command, ["--hash-password", "ann"], input="correct horse\ncorrect horse\n"
    )
    assert done.exit_code == 0, done.output
    path = tmp_path / "accounts.txt"
    path.write_text(done.stdout.strip().splitlines()[-1] + "\n")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert Accounts.from_file(path).verify("ann", "correct horse") == "ann"


@pytest.mark.parametrize("module", ["command", "server", "routes", "serving"])
def test_neither_torch_nor_gradio_is_loaded_before_it_is_needed(module: str) -> None:
    code = (
        f"import sys, pacellm_rag_ui.{module}\n"
        "print([m for m in ('torch', 'transformers', 'gradio') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'ui'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_twenty_at_once_get_their_own_answers(tmp_path: Path) -> None:
    endings: dict[int, tuple[str, int, str]] = {}

    def work(url: str, number: int) -> None:
        path = tmp_path / f"report-{number}.txt"
        path.write_text(f"Report {number}.\fThe contract ends in 2030. Number {number}.")
        client = connect(url)
        [sent] = client.predict([handle_file(str(path))], api_name="/upload")
        view = client.submit("When does the contract end?", api_name="/ask").result()
        [citation] = [c for c in view["citations"] if c["page"] == 2]
        same = citation["document_id"] == sent["id"]
        endings[number] = (view["state"], sent["pages"], sent["name"] if same else "another's")

    pace = ("--word-pause", "0.05", "--window-pause", "0.1")
    with served(tmp_path / "data", "--answer", ANSWER, *pace) as url:
        threads = [threading.Thread(target=work, args=(url, n)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert endings == {n: ("done", 2, f"report-{n}.txt") for n in range(20)}
