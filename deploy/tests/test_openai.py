"""The `openai` package against a running stack: what a program written for OpenAI sees."""

import concurrent.futures
import json
import urllib.error
import urllib.request

import openai
import pytest

# Long enough for several blocks of cache, different in its first words from test to test.
DOCUMENT = " ".join(f"Chapter {n} tells of lamp {n} and of the keeper who lit it." for n in range(60))


def ask(client, stack, question, **options):
    options = {"max_tokens": 8, "temperature": 0} | options
    messages = [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": question}]
    return client.chat.completions.create(model=stack.model, messages=messages, **options)


def test_the_model_is_listed(client, stack):
    assert stack.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(stack.model).object == "model"


def test_a_chat_completion(client, stack):
    reply = ask(client, stack, "Which lamp?")
    assert reply.object == "chat.completion"
    assert reply.model == stack.model
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason in ("stop", "length")
    usage = reply.usage
    assert 1 <= usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_the_same_as_a_whole_reply(client, stack):
    whole = ask(client, stack, "Which keeper?", max_tokens=16)
    chunks = list(
        ask(client, stack, "Which keeper?", max_tokens=16, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert ends[-1] == whole.choices[0].finish_reason
    assert all(end is None for end in ends[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_without_usage_carries_none(client, stack):
    chunks = list(ask(client, stack, "Which night?", stream=True))
    assert all(chunk.usage is None for chunk in chunks)


def test_a_second_question_is_served_from_the_cache(client, stack):
    ask(client, stack, "Is this the first time?")
    usage = ask(client, stack, "And the second?").usage
    cached = usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < usage.prompt_tokens
    own = usage.model_extra["hearth"]
    assert set(own["loaded_tokens"]) == {"engine", "pinned", "nvme"}
    assert sum(own["loaded_tokens"].values()) == cached
    assert own["computed_tokens"] + cached == usage.prompt_tokens


def test_a_plain_completion(client, stack):
    options = {"model": stack.model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**options)
    assert whole.object == "text_completion"
    assert whole.usage.prompt_tokens > 0
    chunks = list(client.completions.create(stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text


def test_max_tokens_ends_with_length(client, stack):
    options = {"model": stack.model, "prompt": "a b c", "max_tokens": 3, "seed": 1}
    reply = client.completions.create(**options)
    assert reply.usage.completion_tokens <= 3
    if reply.usage.completion_tokens == 3:
        assert reply.choices[0].finish_reason == "length"


def test_a_seed_repeats_itself(client, stack):
    texts = {ask(client, stack, "Surprise me.", temperature=1.0, seed=7).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


def test_a_stop_string_ends_the_text_before_it(client, stack):
    options = {"model": stack.model, "prompt": "The lamp", "max_tokens": 16, "temperature": 0}
    text = client.completions.create(**options).choices[0].text
    assert len(text) > 2
    middle = text[len(text) // 2]
    reply = client.completions.create(stop=[middle], **options)
    assert reply.choices[0].text == text.split(middle)[0]
    assert reply.choices[0].finish_reason == "stop"


def test_several_at_once(client, stack):
    alone = [ask(client, stack, f"Question {n}?").choices[0].message.content for n in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = pool.map(lambda n: ask(client, stack, f"Question {n}?"), range(4))
        assert [reply.choices[0].message.content for reply in replies] == alone


def test_a_client_that_leaves_disturbs_nobody(client, stack):
    with ask(client, stack, "Tell me all.", max_tokens=200, stream=True) as stream:
        next(iter(stream))
    assert ask(client, stack, "Still there?").choices


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"
    assert "no-such-model" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": 1e9},
        {"top_p": 2},
        {"max_tokens": -5},
        {"max_tokens": 0},
        {"n": 0},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "hi"}]},
        {"stop": ["x"] * 100},
    ],
    ids=json.dumps,
)
def test_a_bad_parameter_is_a_bad_request(client, stack, bad):
    options = {"model": stack.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(options | bad))
    assert caught.value.type == "invalid_request_error"
    assert caught.value.message


def test_a_prompt_over_the_context_is_a_bad_request(client, stack):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stack, "word " * 40_000)
    assert caught.value.code == "context_length_exceeded"


def test_malformed_json_is_a_bad_request(stack):
    request = urllib.request.Request(
        f"{stack.url}/v1/chat/completions", b'{"model": ', {"content-type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 400
    error = json.load(caught.value)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
