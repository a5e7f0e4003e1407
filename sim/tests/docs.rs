//! What the documentation shows is what is read.

use std::time::Duration;

use ebb_sim::file;
use ebb_sim::scenario::{Disturbance, ScaledBy, Span, Times};

const DOCS: &str = include_str!("../../docs/scenarios.md");

#[test]
fn the_documented_scenario_is_read() {
    let example = DOCS.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let scenario = file::parse("example", example).unwrap();
    let [cpu, gpu] = &scenario.worker_groups[..] else { panic!("the example has two worker groups") };
    assert_eq!((cpu.scaled_by, cpu.slots, cpu.max_unavailable), (ScaledBy::RayThroughHpa, 2, Some(1)));
    assert_eq!((cpu.requests.amount("cpu"), gpu.requests.amount("nvidia.com/gpu"), gpu.base_cpu.get()), (500, 1, 25));
    assert_eq!(scenario.policy.scale_up.pending_for, Duration::from_secs(10));
    assert_eq!(scenario.jobs[1].task_time, Span::seconds(240, 240));
    let silent = Duration::from_secs(30 * 60)..Duration::from_secs(35 * 60);
    let group = "cpu-workers".to_owned();
    let expected = Disturbance::SilentAgent { group, from: silent.start, until: silent.end };
    assert_eq!(scenario.disturbances[2], expected);
    assert_eq!(scenario.times.launch, Span::seconds(90, 120));
}

#[test]
fn the_documented_times_are_the_defaults() {
    let Times { launch, ready, terminate, pod_start, pod_stop, ray_update, ray_idle } = Times::default();
    let spans = [launch, ready, terminate, pod_start, pod_stop].map(|span| (span.median, span.p95));
    let names = ["launch", "ready", "terminate", "podStart", "podStop"];
    let row = |name: &str| DOCS.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
    for (name, (median, p95)) in names.into_iter().zip(spans) {
        assert!(row(name).ends_with(&format!("| {}s, {}s |", median.as_secs(), p95.as_secs())), "{name}");
    }
    for (name, duration) in [("rayUpdate", ray_update), ("rayIdle", ray_idle)] {
        assert!(row(name).ends_with(&format!("| {}s |", duration.as_secs())), "{name}");
    }
}
