//! A scenario's file: the coordinator's own configuration, the work, what goes wrong, and how long things take.
//! Everything wrong with it is said with its line before anything runs. `docs/scenarios.md` describes it.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_config::{Check, Problem, Section, Text, count, from_text};
use ebb_core::kubernetes::Toleration;
use ebb_core::policy::Policy;
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::scenario::{Disturbance, Job, ScaledBy, Scenario, Span, Times, WorkerGroup};

/// Monday, 2026-01-05, 09:00 UTC: a run's clock has to start somewhere.
const STARTS_AT: Instant = Instant::from_millis(1_767_603_600_000);

/// In place of a duration that cannot be read, and so is refused anyway: not zero, which would be refused again.
const UNREAD: Duration = Duration::from_secs(1);

/// Reads a scenario of this name; says all that is wrong with it, in the file's order.
pub fn parse(name: &str, text: &str) -> Result<Scenario, Vec<Problem>> {
    let file: File = from_text(text).map_err(|problem| vec![problem])?;
    let mut check = Check::default();
    let policy = file.coordinator.policy().unwrap_or_else(|problems| {
        check.problems.extend(problems);
        Policy::default()
    });
    let worker_groups: Vec<_> = file.worker_groups.iter().map(|group| worker_group(&mut check, group)).collect();
    for (index, group) in file.worker_groups.iter().enumerate() {
        if file.worker_groups[..index].iter().any(|other| other.name.value == group.name.value) {
            check.refuse(group.name.referenced, format_args!("a second worker group {}", group.name.value));
        }
    }
    let scenario = Scenario {
        name: name.to_owned(),
        about: file.about.split_whitespace().collect::<Vec<_>>().join(" "),
        starts_at: STARTS_AT,
        duration: check.limit(Some(&file.duration), UNREAD),
        zones: file.zones.value.clone(),
        jobs: file.jobs.iter().map(|it| job(&mut check, it, &worker_groups)).collect(),
        disturbances: file
            .disturbances
            .iter()
            .map(|it| disturbance(&mut check, it, &policy, &file.zones.value))
            .collect(),
        times: times(&mut check, &file.times),
        worker_groups,
        policy,
    };
    if scenario.zones.is_empty() {
        check.refuse(file.zones.referenced, "expected at least one zone");
    }
    if check.problems.is_empty() {
        return Ok(scenario);
    }
    check.problems.sort();
    Err(check.problems)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    about: String,
    duration: Text,
    zones: Spanned<Vec<String>>,
    coordinator: Section,
    worker_groups: Vec<WorkerGroupFile>,
    jobs: Vec<JobFile>,
    #[serde(default)]
    disturbances: Vec<DisturbanceFile>,
    #[serde(default)]
    times: TimesFile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorkerGroupFile {
    name: Text,
    requests: BTreeMap<String, Text>,
    #[serde(default)]
    tolerations: Vec<TolerationFile>,
    slots: Option<Text>,
    min: Text,
    max: Text,
    scaled_by: Text,
    base_cpu: Option<Text>,
    base_memory: Option<Text>,
    max_unavailable: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TolerationFile {
    key: String,
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JobFile {
    name: String,
    at: Text,
    worker_group: Text,
    tasks: Text,
    over: Option<Text>,
    task_time: SpanFile,
    cpu: Option<Text>,
    memory: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpanFile {
    median: Text,
    p95: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum DisturbanceFile {
    NoCapacity { group: Text, zone: Text, from: Text, until: Text },
    SpotReclaim { group: Text, at: Text, instances: Text },
    SilentAgent { group: Text, from: Text, until: Text },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TimesFile {
    launch: Option<SpanFile>,
    ready: Option<SpanFile>,
    terminate: Option<SpanFile>,
    pod_start: Option<SpanFile>,
    pod_stop: Option<SpanFile>,
    ray_update: Option<Text>,
    ray_idle: Option<Text>,
}

fn worker_group(check: &mut Check, file: &WorkerGroupFile) -> WorkerGroup {
    let min = check.read(Some(&file.min), 0, count);
    let max = check.read(Some(&file.max), u32::MAX, count);
    if min > max {
        check.refuse(file.min.referenced, format_args!("min {min} is above max {max}"));
    }
    let scaled_by = check.read(Some(&file.scaled_by), ScaledBy::Ray, |text| {
        Ok(match text {
            "ray" => ScaledBy::Ray,
            "hpa" => ScaledBy::Hpa,
            "rayThroughHpa" => ScaledBy::RayThroughHpa,
            "both" => ScaledBy::Both,
            _ => return Err(format!("`{text}` scales nothing: ray, hpa, rayThroughHpa or both")),
        })
    });
    if scaled_by != ScaledBy::Ray && min == 0 {
        check.refuse(file.min.referenced, "an HPA with a CPU metric keeps a last worker: expected at least 1");
    }
    let slots = check.read(file.slots.as_ref(), 1, count);
    if let Some(text) = file.slots.as_ref().filter(|_| slots == 0) {
        check.refuse(text.referenced, "a worker without slots runs no tasks: expected at least 1");
    }
    let tolerations = file.tolerations.iter().map(|toleration| Toleration {
        key: Some(toleration.key.clone()),
        value: toleration.value.clone(),
        effect: None,
    });
    WorkerGroup {
        name: file.name.value.clone(),
        requests: check.resources(&file.requests),
        tolerations: tolerations.collect(),
        slots,
        min,
        max,
        scaled_by,
        base_cpu: check.share(file.base_cpu.as_ref(), Permille::percent(3)),
        base_memory: check.share(file.base_memory.as_ref(), Permille::percent(20)),
        max_unavailable: file.max_unavailable.as_ref().map(|text| check.read(Some(text), 0, count)),
    }
}

fn job(check: &mut Check, file: &JobFile, groups: &[WorkerGroup]) -> Job {
    known(check, &file.worker_group, groups.iter().map(|group| group.name.as_str()));
    Job {
        name: file.name.clone(),
        at: check.duration(Some(&file.at), Duration::ZERO),
        group: file.worker_group.value.clone(),
        tasks: check.read(Some(&file.tasks), 0, count),
        over: check.duration(file.over.as_ref(), Duration::ZERO),
        task_time: span(check, Some(&file.task_time), Span::fixed(Duration::ZERO)),
        cpu: check.share(file.cpu.as_ref(), Permille::percent(90)),
        memory: check.share(file.memory.as_ref(), Permille::percent(30)),
    }
}

fn disturbance(check: &mut Check, file: &DisturbanceFile, policy: &Policy, zones: &[String]) -> Disturbance {
    let (DisturbanceFile::NoCapacity { group, .. }
    | DisturbanceFile::SpotReclaim { group, .. }
    | DisturbanceFile::SilentAgent { group, .. }) = file;
    known(check, group, policy.groups.keys().map(String::as_str));
    let group = group.value.clone();
    match file {
        DisturbanceFile::NoCapacity { zone, from, until, .. } => {
            let (from, until) = period(check, from, until);
            known(check, zone, zones.iter().map(String::as_str));
            Disturbance::NoCapacity { group, zone: zone.value.clone(), from, until }
        }
        DisturbanceFile::SpotReclaim { at, instances, .. } => {
            let at = check.duration(Some(at), Duration::ZERO);
            Disturbance::SpotReclaim { group, at, instances: check.read(Some(instances), 0, count) }
        }
        DisturbanceFile::SilentAgent { from, until, .. } => {
            let (from, until) = period(check, from, until);
            Disturbance::SilentAgent { group, from, until }
        }
    }
}

fn period(check: &mut Check, from: &Text, until: &Text) -> (Duration, Duration) {
    let problems = check.problems.len();
    let [start, end] = [from, until].map(|text| check.duration(Some(text), Duration::ZERO));
    if check.problems.len() == problems && end <= start {
        check.refuse(until.referenced, format_args!("until {} is not after from {}", until.value, from.value));
    }
    (start, end)
}

fn times(check: &mut Check, file: &TimesFile) -> Times {
    let default = Times::default();
    Times {
        launch: span(check, file.launch.as_ref(), default.launch),
        ready: span(check, file.ready.as_ref(), default.ready),
        terminate: span(check, file.terminate.as_ref(), default.terminate),
        pod_start: span(check, file.pod_start.as_ref(), default.pod_start),
        pod_stop: span(check, file.pod_stop.as_ref(), default.pod_stop),
        ray_update: check.limit(file.ray_update.as_ref(), default.ray_update),
        ray_idle: check.duration(file.ray_idle.as_ref(), default.ray_idle),
    }
}

fn span(check: &mut Check, file: Option<&SpanFile>, default: Span) -> Span {
    let Some(file) = file else { return default };
    let median = check.limit(Some(&file.median), UNREAD);
    let p95 = check.duration(file.p95.as_ref(), median);
    if let Some(text) = file.p95.as_ref().filter(|_| p95 < median) {
        check.refuse(text.referenced, "the 95th percentile is below the median");
    }
    Span { median, p95 }
}

/// Refuses a name that is none of these.
fn known<'a>(check: &mut Check, text: &Text, names: impl Iterator<Item = &'a str>) {
    let names: Vec<_> = names.collect();
    if !names.contains(&text.value.as_str()) {
        check.refuse(text.referenced, format_args!("`{}` is none of {}", text.value, names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
about: A test.
duration: 1h
zones: [a]
coordinator: {groups: [{name: cpu, min: 0, max: 2, instanceType: m5.xlarge}]}
workerGroups: [{name: ray, requests: {cpu: 1, memory: 1Gi}, min: 0, max: 4, scaledBy: ray}]
jobs: [{name: one, at: 1m, workerGroup: ray, tasks: 2, taskTime: {median: 30s}}]
";

    fn refused(text: &str, expected: &[(u64, u64, &str)]) {
        let problems = parse("test", text).expect_err("should have been refused");
        let problems: Vec<_> = problems.iter().map(|it| (it.line, it.column, it.message.as_str())).collect();
        assert_eq!(problems, expected);
    }

    #[test]
    fn a_small_file_says_enough() {
        let scenario = parse("test", FILE).unwrap();
        assert_eq!((scenario.jobs[0].tasks, scenario.worker_groups[0].slots), (2, 1));
        assert_eq!(scenario.worker_groups[0].requests.amount("cpu"), 1000);
        assert_eq!(scenario.times, Times::default());
    }

    #[test]
    fn everything_wrong_is_said_with_its_place() {
        let text = FILE.replace("max: 2", "max: two").replace("duration: 1h", "duration: 1 week");
        let text = text.replace("workerGroup: ray", "workerGroup: rey").replace("scaledBy: ray", "scaledBy: hpa");
        let problems = parse("test", &text).expect_err("should have been refused");
        let places: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(places, [2, 4, 5, 6]);
        refused(
            &text.replace("two", "2").replace("1 week", "1h").replace("hpa", "ray"),
            &[(6, 41, "`rey` is none of ray")],
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        refused(&FILE.replace("zones: [a]", "zones: []"), &[(3, 8, "expected at least one zone")]);
        let silent = "disturbances: [silentAgent: {group: cpu, from: 9m, until: 5m}]\n";
        refused(&format!("{FILE}{silent}"), &[(7, 59, "until 5m is not after from 9m")]);
        let twice = "{name: ray, requests: {cpu: 1}, min: 0, max: 1, scaledBy: ray}, ";
        let text = FILE.replace("workerGroups: [", &format!("workerGroups: [{twice}"));
        refused(&text, &[(5, 87, "a second worker group ray")]);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let problems = parse("test", &FILE.replace("zones", "zonez")).expect_err("should have been refused");
        assert_eq!(problems[0].line, 3);
        assert!(problems[0].message.contains("zonez"), "{}", problems[0].message);
    }
}
