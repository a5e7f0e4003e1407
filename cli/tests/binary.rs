//! The whole binary, as a person calls it. `UPDATE_GOLDEN=1 cargo test --package ebb --test binary` writes what they
//! print anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../src/golden.rs"]
mod golden;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use golden::is_golden;

fn ebb(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ebb")).args(words).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_demo_tells_the_flow_and_draws_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pictures");
    let output = ebb(&["demo", "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(output.stderr));
    let printed = text(output.stdout).replace(out.to_str().unwrap(), "OUT");
    is_golden(&printed, "tests/golden/demo.txt");
    assert!(printed.lines().count() < 90, "it is read as a story");
    assert!(printed.lines().all(|line| line.chars().count() <= 112), "and not wrapped by a usual terminal");
    for file in ["stage-1-minimal.png", "stage-7-minimal-again.png", "flow.gif", "flow.svg"] {
        assert!(fs::metadata(out.join(file)).unwrap().len() > 10_000, "{file}");
    }
}

#[test]
fn a_run_is_written_as_csv_and_as_json() {
    let csv = text(ebb(&["simulate", "steady", "-o", "csv"]).stdout);
    let mut lines = csv.lines();
    let header: Vec<_> = lines.next().unwrap().split(',').collect();
    assert!(header.contains(&"cpu-workers_desired") && header.contains(&"dollars"), "{header:?}");
    assert!(lines.all(|line| line.split(',').count() == header.len()));
    let run: serde_json::Value = serde_json::from_slice(&ebb(&["simulate", "steady", "-o", "json"]).stdout).unwrap();
    assert_eq!(run["scenario"], "steady");
    assert_eq!(run["totals"]["groups"]["cpu-workers"]["peak"], 2);
}

#[test]
fn a_wrong_scenario_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.yaml");
    let steady = include_str!("../../sim/scenarios/steady.yaml");
    fs::write(&path, steady.replace("min: 2, max: 10", "min: 20, max: 10")).unwrap();
    let output = ebb(&["simulate", path.to_str().unwrap()]);
    let error = text(output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("mine.yaml:") && error.contains("min 20 is above max 10"), "{error}");
    let error = text(ebb(&["simulate", "no_such"]).stderr);
    assert!(error.contains("no_such") && error.contains("bursty_training"), "{error}");
}

#[test]
fn a_recording_is_judged_with_reasons() {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/training.jsonl");
    let recording = recording.to_str().unwrap();
    is_golden(&text(ebb(&["classify", recording]).stdout), "tests/golden/classify.txt");

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let group = "groups: [{name: gpu, min: 0, max: 1, instanceType: g4dn.xlarge}]";
    fs::write(&config, format!("{group}\nidle: {{gpu: {{busyFrom: 98%}}, cpu: {{busyFrom: 95%}}}}\n")).unwrap();
    let lenient = text(ebb(&["classify", recording, "--config", config.to_str().unwrap(), "-o", "json"]).stdout);
    let classes = lenient.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let classes: Vec<_> = classes.map(|change| change["class"]["class"].as_str().unwrap().to_owned()).collect();
    assert_eq!(classes[..3], ["unknown", "idle", "unknown"], "{classes:?}");

    let broken = folder.path().join("broken.jsonl");
    fs::write(&broken, "{\"utilization\": {\"gpu\": \"absent\"}}\n{\"cpu\": 5}\n").unwrap();
    let output = ebb(&["classify", broken.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(text(output.stderr).contains("understand line 2 of "));

    fs::write(&broken, "\n{\"for\": \"300000000000h\", \"utilization\": {\"gpu\": \"absent\"}}\n").unwrap();
    let output = ebb(&["classify", broken.to_str().unwrap()]);
    let error = text(output.stderr);
    assert!(!output.status.success());
    assert!(error.contains(&format!("understand line 2 of {}", broken.display())), "{error}");
    assert!(error.contains("`300000000000h` is longer than a year (8760h), the most for one line"), "{error}");
}

#[test]
fn top_says_whom_it_could_not_reach() {
    // Nobody listens at the port of a listener that has gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = ebb(&["top", "--once", &format!("http://127.0.0.1:{port}")]);
    let error = text(output.stderr);
    assert!(!output.status.success() && error.contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[test]
fn status_and_explain_say_how_to_reach_the_coordinator() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    for words in [&["status"][..], &["explain", "pod", "train-1"]] {
        let output = ebb(&[words, &["--coordinator", &url]].concat());
        let error = text(output.stderr);
        assert!(!output.status.success());
        assert!(error.contains(&format!("reach the coordinator at {url}")), "{error}");
        assert!(error.contains("port-forward deploy/ebb-coordinator 9484"), "{error}");
    }
}

/// A week of a node that is idle at night, a sample a second: what it takes at the end of the first day is all it takes.
#[test]
fn a_week_takes_no_more_memory_than_a_day() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ebb"))
        .args(["classify", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut day = || {
        for ten_seconds in 0..8640 {
            let cpu = if ten_seconds < 2880 { 20 } else { 900 };
            writeln!(stdin, "{{\"for\": \"10s\", \"utilization\": {{\"cpu\": {cpu}, \"gpu\": \"absent\"}}}}").unwrap();
        }
    };
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    day();
    let after_a_day = resident();
    (1..7).for_each(|_| day());
    let after_a_week = resident();
    drop(stdin);
    let printed = text(child.wait_with_output().unwrap().stdout);
    assert!(printed.contains("7d in all, 14 changes"), "{printed}");
    assert!(after_a_week < after_a_day + 256, "{after_a_day} KiB, then {after_a_week} KiB");
}
