//! The program as a person runs it: a quick suite gives a table, and a report with the published names.

use std::process::Command;

#[test]
fn a_quick_run_reports_every_system_of_a_case() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("out.json");
    let output = Command::new(env!("CARGO_BIN_EXE_hearth-benches"))
        .args(["copy", "--quick", "--rounds", "1", "--only", "copy_1MiB", "--json"])
        .arg(&json)
        .output()
        .expect("the program starts");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("copy / copy_1MiB") && table.contains("x limit:memcpy"), "{table}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    for system in ["limit:memcpy", "hearth"] {
        let row = rows.iter().find(|row| row["system"] == system).expect("a row per system");
        assert_eq!((&row["suite"], &row["case"]), (&"copy".into(), &"copy_1MiB".into()));
        assert_eq!((&row["metric"], &row["unit"]), (&"GB/s".into(), &"GB/s".into()));
        assert_eq!(row["rounds"], 1);
        assert!(row["min"].as_f64() > Some(0.0) && row["min"].as_f64() <= row["max"].as_f64(), "{row}");
    }
}
