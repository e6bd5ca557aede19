"""curl against a running stack: what a person at a terminal sees."""

import json
import subprocess

BODY_BYTES = 100 << 20


def curl(*arguments):
    """Status, headers (lower case) and body of one request."""
    command = ["curl", "--silent", "--show-error", "--max-time", "120", "--include", *arguments]
    done = subprocess.run(command, capture_output=True, check=True)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body.decode()


def chat(stack, **options):
    body = {"model": stack.model, "messages": [{"role": "user", "content": "Say a word."}], "max_tokens": 4}
    return curl("--no-buffer", "--json", json.dumps(body | options), f"{stack.url}/v1/chat/completions")


def test_a_reply_and_where_it_came_from(stack):
    status, headers, body = chat(stack)
    assert status == 200
    assert headers["content-type"].startswith("application/json")
    assert any(name.startswith("x-hearth-") for name in headers), headers
    assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"


def test_a_stream_of_events(stack):
    status, headers, body = chat(stack, stream=True)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [event for event in body.split("\n\n") if event]
    assert all(event.startswith("data: ") for event in events), events
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event[6:])["object"] == "chat.completion.chunk" for event in events[:-1])


def test_health_and_metrics(stack):
    assert curl(f"{stack.url}/health")[0] == 200
    status, _, body = curl(f"{stack.url}/metrics")
    assert status == 200
    assert "# TYPE hearth_" in body


def test_an_unknown_path_is_an_error_as_openai_shapes_it(stack):
    status, _, body = curl(f"{stack.url}/v1/nothing")
    assert status == 404
    assert json.loads(body)["error"]["message"]


def test_a_huge_body_is_refused_and_disturbs_nobody(stack, tmp_path):
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.write(b'{"model": "')
        file.truncate(BODY_BYTES)
    status, _, body = curl(
        "--header", "content-type: application/json", "--data-binary", f"@{huge}", f"{stack.url}/v1/chat/completions"
    )
    assert status == 413
    assert json.loads(body)["error"]["message"]
    assert chat(stack)[0] == 200
