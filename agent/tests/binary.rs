//! The whole binary: what it prints, serves, refuses, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use rustix::process::Signal;
use serde_json::Value;

use common::{Serving, assert_documented, run, samples, until, write_tree};

#[test]
fn metrics_are_served_in_both_formats() {
    let serving = Serving::start(&["--interval", "100ms"]);
    serving.wait_ready();
    assert_eq!(serving.get("/healthz").0, 200);
    let (_, head, classic) = serving.get("/metrics");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let (_, head, open) =
        serving.ask("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0", "");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(open.ends_with("# EOF\n") && !classic.contains("# EOF"));
    let names = |page: &str| samples(page).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&classic), names(&open));
    assert!(classic.contains("# TYPE ebb_node_cpu_seconds_total counter\n"));
    assert!(open.contains("# TYPE ebb_node_cpu_seconds counter\n"));
    let all = samples(&classic);
    let value = |wanted: &str| all.iter().find(|(name, _)| name == wanted).unwrap_or_else(|| panic!("no {wanted}")).1;
    assert_eq!(value("ebb_node_class{class=\"unknown\"}"), 1.0);
    assert_eq!(value("ebb_source_up{source=\"cpu\"}"), 1.0);
    assert!(value("ebb_node_memory_total_bytes") > 0.0);
    assert!(value("ebb_sample_age_seconds") < 5.0);
    assert!(value("process_resident_memory_bytes") > 0.0);
    let (status, head, body) = serving.get("/api/v1/node");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    let node: Value = serde_json::from_str(&body).unwrap();
    assert!(node["memory"]["totalBytes"].as_u64() > Some(0) && node["class"]["class"] == "unknown", "{body}");
    assert_eq!(serving.get("/nothing").0, 404);
    assert_eq!(serving.ask("DELETE /metrics HTTP/1.1", "").0, 405);
}

/// Names and what they mean, of the families that a plain machine has; those of GPUs are held against in `gpu.rs`.
#[test]
fn the_page_is_documented() {
    let serving = Serving::start(&["--interval", "100ms"]);
    serving.wait_ready();
    assert_documented(&serving.get("/metrics").2);
}

#[test]
fn once_prints_a_sample_of_this_machine() {
    let output = run(&["--once", "-o", "json", "--interval", "200ms"]);
    assert_eq!(output.status.code(), Some(0));
    let sample: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(sample["utilizationPermille"]["cpu"].is_u64(), "{sample}");
    assert_eq!((&sample["class"]["class"], &sample["class"]["missing"]), (&"unknown".into(), &"history".into()));
    assert!(sample["memory"]["totalBytes"].as_u64().unwrap() > 0);
    let table = String::from_utf8(run(&["--once", "--interval", "200ms"]).stdout).unwrap();
    assert!(table.contains("unknown: not watched for 30s yet"), "{table}");
}

#[test]
fn what_is_broken_is_unknown_and_never_zero() {
    let root = tempfile::tempdir().unwrap();
    write_tree(
        root.path(),
        &[
            ("proc/stat", "cpu  1 2 three\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\nInactive(file): 100 kB\n"),
            ("cgroup/cgroup.controllers", "cpu\n"),
            ("cgroup/a\"b/cpu.stat", "usage_usec 5\n"),
        ],
    );
    let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
    let (proc, sys, cgroup) = (at("proc"), at("sys"), at("cgroup"));
    let roots = ["--proc-root", &proc, "--sys-root", &sys, "--cgroup-root", &cgroup, "--interval", "100ms"];

    let output = run(&[&["--once", "-o", "json"], &roots[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let sample: Value = serde_json::from_slice(&output.stdout).unwrap();
    let utilization = &sample["utilizationPermille"];
    assert!(utilization["cpu"].is_null() && utilization["memoryPressure"].is_null(), "{utilization}");
    assert_eq!(utilization["memory"], 800);
    assert_eq!(utilization["gpu"], "unknown");
    let sources = sample["sources"].as_array().unwrap();
    let cpu = sources.iter().find(|source| source["source"] == "cpu").unwrap();
    assert_eq!(cpu["up"], false);
    assert!(cpu["why"].as_str().unwrap().ends_with("no time for every mode of a CPU"), "{cpu}");

    let serving = Serving::start(&roots);
    serving.wait_ready();
    let page = serving.get("/metrics").2;
    assert!(page.contains("ebb_source_up{source=\"cpu\"} 0"), "{page}");
    assert!(page.contains("ebb_source_errors_total{source=\"cpu\",kind=\"malformed\"}"), "{page}");
    assert!(page.contains("ebb_source_errors_total{source=\"pressure\",kind=\"missing\"}"), "{page}");
    assert!(page.contains("ebb_cgroup_cpu_seconds_total{cgroup=\"/a\\\"b\"}"), "{page}");
    assert!(!page.contains("ebb_node_cpu_seconds_total"), "{page}");
    assert!(!page.contains("ebb_node_utilization_ratio{signal=\"cpu\"}"), "{page}");
}

#[test]
fn a_recording_takes_the_place_of_the_host() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"utilization\": {\"cpu\": 20, \"gpu\": \"absent\"}}\n").unwrap();
    let serving = Serving::start(&["--interval", "100ms", "--source", &format!("replay:{}", file.path().display())]);
    serving.wait_ready();
    let page = serving.get("/metrics").2;
    assert!(page.contains("ebb_node_utilization_ratio{signal=\"cpu\"} 0.02"), "{page}");
    // Whoever looks sees that these are not this machine's figures.
    let sources: Vec<_> = page.lines().filter(|line| line.starts_with("ebb_source_up")).collect();
    assert_eq!(sources, ["ebb_source_up{source=\"replay\"} 1.0"]);
}

#[test]
fn a_recording_of_this_machine_can_be_played() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.jsonl");
    let file = file.to_str().unwrap();
    let record = ["record", "--output", file, "--for", "300ms", "--interval", "100ms"];
    assert_eq!(run(&record).status.code(), Some(0));
    let lines = std::fs::read_to_string(file).unwrap();
    // Fewer than three where the machine was too busy for one in time.
    assert!((1..=3).contains(&lines.lines().count()), "{lines}");
    let serving = Serving::start(&["--interval", "100ms", "--source", &format!("replay:{file}")]);
    serving.wait_ready();
    assert!(serving.get("/metrics").2.contains("ebb_node_utilization_ratio{signal=\"memory\"}"));

    let again = run(&record);
    assert_eq!(again.status.code(), Some(1), "a recording is not written over");
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing is overwritten"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), lines);
}

#[test]
fn signals_end_it_cleanly() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let (code, last) = Serving::start(&[]).stop(signal);
        assert_eq!((code, last["signal"].as_str(), last["in_time"].as_bool()), (Some(0), Some(name), Some(true)));
    }
}

#[test]
fn the_log_level_can_be_changed() {
    let mut serving = Serving::start(&["--log-level", "info"]);
    let put = "PUT /log-level HTTP/1.1";
    assert_eq!(serving.ask(put, "loud").0, 400);
    assert_eq!(serving.ask(put, "info,ebb_agent=debug").0, 200);
    assert_eq!(until(&mut serving.log, "log level changed")["filter"], "info,ebb_agent=debug");
    assert_eq!(serving.ask(put, &"x".repeat(10_000)).0, 400);
    assert_eq!(serving.get("/log-level").0, 405);
}

#[test]
fn bad_input_is_refused_before_anything_starts() {
    let check = |args: &[&str], code, expected: &str| {
        let output = run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(expected), "{error}");
    };
    check(&[], 2, "--node-name");
    check(&["--standalone", "--interval", "an hour"], 2, "30s, 10m");
    check(&["--standalone", "--source", "replay:/nonexistent"], 1, "read the recording /nonexistent");
    check(&["--standalone", "--listen", "203.0.113.1:1"], 1, "listen on 203.0.113.1:1");
    check(&["--node-name", "n", "--kubeconfig", "/nonexistent"], 1, "use the kubeconfig /nonexistent");
}

#[test]
fn the_kubelets_resource_metrics_are_served_on_request() {
    assert_eq!(Serving::start(&[]).get("/metrics/resource").0, 404);
    let root = tempfile::tempdir().unwrap();
    write_tree(root.path(), &[("cgroup.controllers", "cpu\n"), ("cpu.stat", "usage_usec 5\n")]);
    let root = root.path().to_str().unwrap();
    let serving = Serving::start(&["--serve-resource-metrics", "--interval", "100ms", "--cgroup-root", root]);
    serving.wait_ready();
    let (status, head, page) = serving.get("/metrics/resource");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(page.contains("# TYPE node_cpu_usage_seconds_total counter\n"), "{page}");
    assert!(page.ends_with("\nresource_scrape_error 0\n"), "{page}");
    let memory = page.lines().find_map(|line| line.strip_prefix("node_memory_working_set_bytes ")).unwrap();
    let (bytes, millis) = memory.split_once(' ').unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let age = now.as_secs_f64() - millis.parse::<f64>().unwrap() / 1000.0;
    assert!(bytes.parse::<f64>().unwrap() > 0.0 && (-1.0..30.0).contains(&age), "{memory}");
}
