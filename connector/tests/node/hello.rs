//! Opening a session, and being refused one.

use hearth_connector::proto::code::Code;
use hearth_connector::proto::v1;
use hearth_connector::{Miss, Refusal, State, Store};

use crate::support::{Node, chain, greeting, soon};

fn refusal(store: &Store) -> Refusal {
    match store.wait_ready(soon()) {
        State::Refused(refusal) => (*refusal).clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_session_opens_and_ends_with_the_last_handle() {
    let node = Node::new();
    let (store, conn) = node.session();
    let clone = store.clone();
    drop(store);
    assert!(clone.state().is_connected());
    drop(clone);
    conn.hung_up();
}

#[test]
fn an_absent_node_is_a_miss_until_it_comes() {
    let node = Node::new();
    let path = node.dir.path().join("s");
    std::fs::rename(&path, node.dir.path().join("t")).expect("moved");
    let store = Store::open(node.config());
    assert_eq!(store.match_run(&chain(1), soon()).miss, Some(Miss::StoreDown));
    assert!(matches!(store.state(), State::Connecting));
    std::fs::rename(node.dir.path().join("t"), &path).expect("moved");
    let _conn = node.accept();
    assert!(store.wait_ready(soon()).is_connected());
}

#[test]
fn a_refusal_says_what_a_person_has_to_do() {
    let mismatch = v1::Mismatch { field: "rope".into(), ours: "theta=1".into(), theirs: "theta=2".into() };
    let cases = [
        (Code::IdentityMismatch, Some(mismatch), "rope"),
        (Code::Unauthenticated, None, "secret"),
        (Code::VersionUnsupported, None, "same release"),
        (Code::TooLarge, None, "too_large"),
        (Code::InvalidArgument, None, "invalid_argument"),
    ];
    for (code, mismatch, word) in cases {
        let node = Node::new();
        let store = Store::open(node.config());
        let mut conn = node.greet();
        let hello = conn.hello();
        conn.refuse(hello.id, v1::Error { code: code as u32, message: "no".into(), mismatch });
        let refusal = refusal(&store);
        assert!(refusal.to_string().contains(word), "{refusal}");
        assert_eq!(store.acquire(&chain(1), 0..1, soon()).miss, Some(Miss::Refused));
    }
}

#[test]
fn another_protocol_is_refused_from_this_side() {
    let node = Node::new();
    let store = Store::open(node.config());
    let (stream, _) = node.listener.accept().expect("a client");
    let mut conn = crate::support::Conn { stream };
    conn.send(&v1::Greeting { version_major: 99, ..greeting() });
    assert!(matches!(refusal(&store), Refusal::Version(_)));
    conn.hung_up();
}

#[test]
fn a_busy_node_is_tried_again() {
    let node = Node::new();
    let store = Store::open(node.config());
    let mut conn = node.greet();
    let hello = conn.hello();
    let error = v1::Error { code: Code::Unavailable as u32, message: "starting".into(), mismatch: None };
    conn.refuse(hello.id, error);
    let _conn = node.accept();
    assert!(store.wait_ready(soon()).is_connected());
}

#[test]
fn a_socket_path_that_no_socket_can_have_is_a_miss() {
    let node = Node::new();
    let mut config = node.config();
    config.socket = Some("x".repeat(200).into());
    let store = Store::open(config);
    assert_eq!(store.match_run(&chain(1), soon()).miss, Some(Miss::StoreDown));
}
