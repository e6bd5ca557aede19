use super::*;

#[derive(Debug, serde::Deserialize)]
struct Ready {
    http: String,
}

const PATIENCE: Duration = Duration::from_secs(30);

fn job(dir: &Path, script: &str) -> Job {
    Job {
        name: "part".to_owned(),
        program: PathBuf::from("/bin/sh"),
        args: vec!["-c".into(), script.into()],
        log: dir.join("part.log"),
        ready_file: dir.join("part.ready"),
    }
}

fn is_alive(pid: u32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_ready_file_is_awaited_and_the_process_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("part.ready");
    let script = format!(
        r#"echo '{{"http":"127.0.0.1:7"}}' > {p}.tmp; mv {p}.tmp {p}; exec sleep 600"#,
        p = ready.display()
    );
    let mut process = Process::start(job(dir.path(), &script)).unwrap();
    let said: Ready = block_on(process.ready(PATIENCE)).unwrap();
    assert_eq!(said.http, "127.0.0.1:7");
    let pid = process.id();
    assert!(is_alive(pid));
    stop_all([&mut process], PATIENCE, || false);
    assert!(!is_alive(pid));
    assert!(process.ended().unwrap().is_some());
}

#[test]
fn a_child_that_dies_at_start_shows_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(job(dir.path(), "echo no disk left >&2; exit 3")).unwrap();
    let error = block_on(process.ready::<Ready>(PATIENCE)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("part ended (exit status: 3)") && text.contains("no disk left"), "{text}");
}

#[test]
fn a_child_that_is_never_ready_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(job(dir.path(), "exec sleep 600")).unwrap();
    let error = block_on(process.ready::<Ready>(Duration::ZERO)).unwrap_err();
    assert!(matches!(error, SuperviseError::NotReady { .. }), "{error}");
}

#[test]
fn a_ready_file_of_another_shape_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("echo nonsense > {}; exec sleep 600", dir.path().join("part.ready").display());
    let mut process = Process::start(job(dir.path(), &script)).unwrap();
    let error = block_on(process.ready::<Ready>(PATIENCE)).unwrap_err();
    assert!(matches!(error, SuperviseError::Ready { .. }), "{error}");
}

#[test]
fn what_ignores_sigterm_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("part.ready");
    let script = format!(
        r#"trap '' TERM; sleep 600 & echo "{{\"http\":\"$!\"}}" > {p}.tmp; mv {p}.tmp {p}; while :; do wait; done"#,
        p = ready.display()
    );
    let mut process = Process::start(job(dir.path(), &script)).unwrap();
    let said: Ready = block_on(process.ready(PATIENCE)).unwrap();
    let (pid, grandchild) = (process.id(), said.http.parse().unwrap());
    stop_all([&mut process], Duration::ZERO, || true);
    assert!(!is_alive(pid));
    let start = Instant::now();
    while is_alive(grandchild) {
        assert!(start.elapsed() < PATIENCE, "the grandchild outlived its group");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[test]
fn dropping_kills() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(job(dir.path(), "exec sleep 600")).unwrap();
    let pid = process.id();
    drop(process);
    assert!(!is_alive(pid));
}

#[test]
fn the_end_of_a_long_log_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    fs::write(&log, (0..5000).map(|i| format!("line {i}\n")).collect::<String>()).unwrap();
    let tail = log_tail(&log);
    assert_eq!(tail.lines().count(), LOG_TAIL_LINES);
    assert!(tail.ends_with("  line 4999"));
    assert_eq!(log_tail(&dir.path().join("none")), "  (the log is empty)");
}
