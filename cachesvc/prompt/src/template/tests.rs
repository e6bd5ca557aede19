//! Templates that use what published ones use. The expected texts are what the `transformers` library
//! renders for the same templates and messages.

use serde_json::json;

use super::*;
use crate::request::{Endpoint, Input, Request};

fn parse(source: &str) -> ChatTemplate {
    let specials = BTreeMap::from([("bos_token", "<s>".to_owned())]);
    ChatTemplate::parse(source, &specials, Path::new("chat_template.jinja")).expect("a valid template")
}

fn messages(messages: serde_json::Value) -> Vec<Message> {
    let body = json!({"model": "m", "messages": messages}).to_string();
    match Request::parse(Endpoint::Chat, body.as_bytes()).expect("a valid request").input {
        Input::Chat { messages, .. } => messages,
        other => panic!("not a chat: {other:?}"),
    }
}

fn conversation() -> Vec<Message> {
    let arguments = r#"{"b": 1.5, "a": [true, null, "ü<"]}"#;
    messages(json!([
        {"role": "system", "content": "Sei kurz <&> 'ja'"},
        {"role": "user", "content": "eins</think>zwei"},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
        {"role": "tool", "content": "ok", "tool_call_id": "c1"},
    ]))
}

fn render(source: &str) -> Result<String, TemplateError> {
    parse(source).render(&conversation(), &serde_json::Map::new())
}

#[test]
fn renders_what_transformers_renders() {
    let cases = [
        (
            "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n{{ loop.index0 }}:{{ m.role }}\n\
             {% if loop.index > 2 %}{% break %}{% endif %}\n{% endfor %}\nend\n",
            "1:user\n2:assistant\nend",
        ),
        (
            "{% set ns = namespace(n=0, seen=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
             {% if m.role == 'tool' %}{% set ns.seen = true %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.seen }} {{ none }}",
            "4 True None",
        ),
        (
            "{% set c = messages[1]['content'] %}{{ c.split('</think>')[-1] }} {{ c.startswith('eins') }} \
             {{ c.strip('e') }} {{ c.upper() }} {{ c|length }} {{ messages[1:]|length }} {{ messages[-1].content }} \
             {{ messages[::-1][0].role }} {{ c.replace('z','Z') }} {{ c.rstrip('i').lstrip('e') }} {{ c.find('zwei') }}",
            "zwei True ins</think>zwei EINS</THINK>ZWEI 16 3 ok tool eins</think>Zwei ins</think>zwe 12",
        ),
        (
            "{% for m in messages if m.tool_calls is defined %}{% for t in m.tool_calls %}{{ t.function | tojson }}|\
             {{ t.function.arguments | tojson(indent=2) }}|{% for k, v in t.function.arguments.items() %}{{ k }};\
             {% endfor %}{% endfor %}{% endfor %}{{ messages[0].content | tojson }}",
            "{\"name\": \"f\", \"arguments\": {\"b\": 1.5, \"a\": [true, null, \"ü<\"]}}|{\n  \"b\": 1.5,\n  \"a\": \
             [\n    true,\n    null,\n    \"ü<\"\n  ]\n}|b;a;\"Sei kurz <&> 'ja'\"",
        ),
        (
            "{{ tools is none }} {{ tools is defined }} {{ foo is defined }} {{ messages[0].content is string }} \
             {{ messages is iterable }} {{ messages[0] is mapping }} {{ foo }} {{ not tools }} {{ 'x' in 'xyz' }} \
             {{ messages|map(attribute='role')|join(',') }} \
             {{ (messages|selectattr('role','equalto','user')|list)|length }} {{ messages|first is mapping }}",
            "True True False True True True  True True system,user,assistant,tool 1 True",
        ),
        (
            "{% macro head(r, s='!') %}<{{ r }}{{ s }}>{% endmacro %}{{ head('a') }}{{ head('b', s='?') }}\
             {{ bos_token + 'x' if bos_token is defined else 'none' }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} \
             {{ [1,2]|length }}",
            "<a!><b?><s>x 3 3 8 2",
        ),
        (
            "{{ enable_thinking|default(true) }} {%- if enable_thinking is defined and enable_thinking is false %}\
             no{% endif %} {{ messages[0].get('name', 'anon') }} {{ messages[3].get('tool_call_id') }}\
             {{ date_string if date_string is defined else '26 Jul 2024' }}",
            "True anon c126 Jul 2024",
        ),
    ];
    for (template, expected) in cases {
        assert_eq!(render(template).expect(template), expected, "{template}");
    }
}

#[test]
fn a_template_may_refuse() {
    let error = render("{% if true %}{{ raise_exception('roles must alternate') }}{% endif %}").unwrap_err();
    assert!(
        matches!(&error, TemplateError::Refused { reason } if reason == "roles must alternate"),
        "{error}"
    );
    let in_macro = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(in_macro), Err(TemplateError::Refused { .. })));
}

#[test]
fn a_faulty_template_is_told_apart() {
    let error = render("line one\n{{ messages[0].content.nope() }}").unwrap_err();
    assert!(matches!(error, TemplateError::Failed { .. }), "{error}");
    assert!(error.to_string().contains(":2"), "names the line: {error}");
}

#[test]
fn steps_and_output_are_bounded() {
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless), Err(TemplateError::TooLong { .. })));
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(recursive), Err(TemplateError::Failed { .. })));
    let wide = "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}";
    assert!(matches!(render(wide), Err(TemplateError::TooLarge { .. })));
}

#[test]
fn the_developer_is_the_system_of_older_templates() {
    let said = messages(json!([{"role": "developer", "content": "x"}]));
    let render = |source| parse(source).render(&said, &serde_json::Map::new()).expect("renders");
    assert_eq!(render("{{ messages[0].role }}"), "system");
    assert_eq!(render("{{ messages[0].role }}{# knows developer #}"), "developer");
}

#[test]
fn template_variables_reach_the_template() {
    let vars = serde_json::Map::from_iter([("enable_thinking".to_owned(), json!(false))]);
    let template = parse("{{ enable_thinking }} {{ messages | length }}");
    assert_eq!(template.render(&conversation(), &vars).expect("renders"), "False 4");
    // They never replace the conversation or the special tokens.
    let vars = serde_json::Map::from_iter([
        ("messages".to_owned(), json!("x")),
        ("bos_token".to_owned(), json!("y")),
    ]);
    let template = parse("{{ bos_token }} {{ messages | length }}");
    assert_eq!(template.render(&conversation(), &vars).expect("renders"), "<s> 4");
}

#[test]
fn a_template_that_does_not_parse_names_its_file_and_line() {
    let error = ChatTemplate::parse("ok\n{% if %}", &BTreeMap::new(), Path::new("dir/chat_template.jinja"))
        .expect_err("does not parse");
    let text = error.to_string();
    assert!(text.contains("dir/chat_template.jinja") && text.contains(":2"), "{text}");
}

#[test]
fn a_template_gets_the_date_only_if_it_cannot_do_without() {
    let guarded = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}fixed{% endif %}";
    assert_eq!(render(guarded).expect("renders"), "fixed");
    assert!(!parse(guarded).is_dated());
    let unguarded = "{{ strftime_now('%Y-%m-%d') }}";
    assert!(parse(unguarded).is_dated());
    let date = render(unguarded).expect("renders");
    assert!(date.len() == 10 && date.starts_with('2'), "{date}");
    assert!(matches!(render("{{ strftime_now('%') }}"), Err(TemplateError::Failed { .. })));
}

#[test]
fn json_takes_pythons_options() {
    let cases = [
        ("{{ 'ü😀'|tojson(ensure_ascii=True) }}", r#""\u00fc\ud83d\ude00""#),
        ("{{ 'ü😀'|tojson(ensure_ascii=False) }}", "\"ü😀\""),
        ("{{ {'b': 1, 'a': [1, 2]}|tojson(separators=(',', ':')) }}", r#"{"b":1,"a":[1,2]}"#),
        ("{{ {'b': 1, 'a': [1, 2]}|tojson(sort_keys=true) }}", r#"{"a": [1, 2], "b": 1}"#),
    ];
    for (template, expected) in cases {
        assert_eq!(render(template).expect(template), expected, "{template}");
    }
    assert!(render("{{ 1|tojson(indent=1000000000) }}").is_err());
}

#[test]
fn generation_blocks_are_plain_blocks() {
    let template = "{%- for m in messages[:2] -%}\n  {%- generation -%}\n {{ m.role }} {% endgeneration %}\n{% endfor %}";
    assert_eq!(render(template).expect("renders"), "system user ");
    assert_eq!(render("{% set generation = 1 %}{{ generation }}").expect("renders"), "1");
}

#[test]
fn nothing_is_not_iterable() {
    assert_eq!(
        render("{{ tools is iterable }} {{ messages is iterable }} {{ 'x' is iterable }}").expect("renders"),
        "False True True"
    );
}
