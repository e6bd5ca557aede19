//! The command line, and the listener's life against a scripted engine.

use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::serve::{bind, serve, write_ready};
use super::*;
use crate::http::tests::{chat_body, model_dir, over_http, say, stage, submission};
use crate::request::FinishReason;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn parse(line: &str) -> Result<Args, clap::Error> {
    Cli::try_parse_from(std::iter::once("engine").chain(line.split_whitespace())).map(|cli| cli.args)
}

#[test]
fn sizes_are_read_as_people_write_them() {
    let bytes = |size: &str| parse(&format!("--model m --kv-bytes {size}")).expect(size).kv_bytes.as_u64();
    assert_eq!(bytes("512MiB"), 512 << 20);
    assert_eq!(bytes("1GiB"), 1 << 30);
    assert_eq!(bytes("1GB"), 1_000_000_000);
    assert_eq!(bytes("4096"), 4096);
    for bad in ["lots", "-1GiB", "1.5.2GiB"] {
        assert!(parse(&format!("--model m --kv-bytes={bad}")).is_err(), "{bad}");
    }
}

#[test]
fn defaults_need_a_model_only() {
    let args = parse("--model m").expect("enough");
    assert_eq!((args.store, args.durability, args.block_tokens.get()), (StoreUse::Auto, WriteTo::Nvme, 16));
    assert!(args.listen.ip().is_loopback());
    assert!(parse("").is_err());
}

#[test]
fn absurd_settings_are_refused() {
    for line in [
        "--model m --threads 0",
        "--model m --block-tokens 0",
        "--model m --running-max 0",
        "--model m --requests-max -1",
        "--model m --listen nowhere",
        "--model m --store maybe",
        "--model m --tenant Not_A_Name",
        "--model m --store-socket s",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[tokio::test]
async fn a_port_in_use_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address");
    let error = bind(address).await.expect_err("in use").to_string();
    assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
    let error = bind("0.0.0.0:0".parse().expect("an address")).await.expect_err("not loopback").to_string();
    assert!(error.contains("TLS"), "{error}");
}

#[test]
fn the_ready_file_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ready.json");
    write_ready(&path, "127.0.0.1:1234".parse().expect("an address")).expect("written");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), r#"{"http":"127.0.0.1:1234"}"#);
    let error = write_ready(&dir.path().join("no/such"), "127.0.0.1:1".parse().expect("an address"));
    assert!(error.expect_err("no directory").to_string().contains("--ready-file"));
}

#[tokio::test]
async fn a_reply_under_way_ends_before_the_engine_does() {
    let (face, inbox) = stage();
    let (listener, address) = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, face, async move { drop(stopped.await) }));
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(over_http(&chat_body(serde_json::json!({}))).as_bytes()).await.expect("written");
    let (submission, _inbox) = submission(inbox).await;
    stop.send(()).expect("it serves");
    let prompt = hearth_prompt::Prompt::load(&model_dir()).expect("the test model");
    say(&prompt, &submission, "the cat", FinishReason::Stop);
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.expect("a reply");
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("the cat"), "{reply}");
    serving.await.expect("no panic").expect("it ends well");
    assert!(TcpStream::connect(address).await.is_err(), "the address is free again");
}
