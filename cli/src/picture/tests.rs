use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use ebb_core::fleet::Fleet;
use ebb_core::instance;
use ebb_core::kubernetes::{Taint, TaintEffect, Toleration};
use ebb_core::policy::{Group, Policy};
use ebb_core::resources::{NVIDIA_GPU, Resources};
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_sim::scenario::{Job, ScaledBy, Scenario, Span, Times, WorkerGroup};
use ebb_sim::simulate;

use super::*;

fn burst() -> Scenario {
    let mut policy = Policy::default();
    let group = |instance_type: &str, min, max, taints| Group {
        min,
        max,
        instance_type: instance_type.to_owned(),
        labels: BTreeMap::new(),
        taints,
        allocatable: instance::allocatable(instance_type).unwrap(),
        unneeded_for: Duration::from_secs(600),
    };
    let taint = Taint { key: NVIDIA_GPU.to_owned(), value: "true".to_owned(), effect: TaintEffect::NoSchedule };
    policy.groups.insert("cpu".to_owned(), group("m5.xlarge", 2, 10, vec![]));
    policy.groups.insert("gpu".to_owned(), group("g4dn.xlarge", 0, 4, vec![taint]));
    let toleration = Toleration { key: Some(NVIDIA_GPU.to_owned()), value: None, effect: None };
    Scenario {
        name: "a_burst".to_owned(),
        about: "Many tasks at once.".to_owned(),
        starts_at: Instant::from_millis(1_767_603_600_000),
        duration: Duration::from_secs(75 * 60),
        zones: ["us-east-1a", "us-east-1b"].map(str::to_owned).into(),
        policy,
        worker_groups: vec![
            workers("cpu-workers", &[("cpu", 1000), ("memory", 3 << 30)], vec![], (2, 24)),
            workers("gpu-workers", &[("cpu", 3000), ("memory", 8 << 30), (NVIDIA_GPU, 1)], vec![toleration], (0, 4)),
        ],
        jobs: vec![job("train", 60, "cpu-workers", 60, 240), job("tune", 90, "gpu-workers", 8, 300)],
        disturbances: Vec::new(),
        times: Times::default(),
    }
}

fn workers(name: &str, requests: &[(&str, u64)], tolerations: Vec<Toleration>, (min, max): (u32, u32)) -> WorkerGroup {
    let mut worker = Resources::default();
    requests.iter().for_each(|(resource, amount)| worker.set(resource, *amount));
    WorkerGroup {
        name: name.to_owned(),
        requests: worker,
        tolerations,
        slots: 1,
        min,
        max,
        scaled_by: if min == 0 { ScaledBy::Ray } else { ScaledBy::RayThroughHpa },
        base_cpu: Permille::percent(3),
        base_memory: Permille::percent(20),
        max_unavailable: None,
    }
}

fn job(name: &str, at: u64, group: &str, tasks: u32, seconds: u64) -> Job {
    Job {
        name: name.to_owned(),
        at: Duration::from_secs(at),
        group: group.to_owned(),
        tasks,
        over: Duration::ZERO,
        task_time: Span::seconds(seconds, seconds + 60),
        cpu: Permille::percent(90),
        memory: Permille::percent(30),
    }
}

static RUN: LazyLock<(Scenario, Run)> = LazyLock::new(|| {
    let scenario = burst();
    let options = ebb_sim::Options { seed: 1, snapshot_every: Some(Duration::from_secs(5)), faults: None };
    let policy = scenario.policy.clone();
    let run = simulate(&scenario, &options, &|| Box::new(Fleet::new(policy.clone()))).unwrap();
    (scenario, run)
});

#[test]
fn a_run_becomes_seven_stages_a_film_and_an_animation() {
    let (scenario, run) = &*RUN;
    let folder = tempfile::tempdir().unwrap();
    let files = draw(scenario, run, &folder.path().join("one")).unwrap();
    let again = draw(scenario, run, &folder.path().join("other")).unwrap();
    assert_eq!(files.len(), 9);
    for (file, again) in files.iter().zip(&again) {
        let bytes = fs::read(file).unwrap();
        assert!(bytes == fs::read(again).unwrap(), "{} differs from run to run", file.display());
        if file.extension().unwrap() == "png" {
            let side = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!((side(16), side(20)), (1280, 720));
        }
        let limit = if file.extension().unwrap() == "gif" { 2 << 20 } else { 1 << 20 };
        assert!(bytes.len() < limit, "{} has {} bytes", file.display(), bytes.len());
    }
    let path = folder.path().join("one/flow.svg");
    Tree::from_data(&fs::read(path).unwrap(), &Options::default()).unwrap();
}

#[test]
fn stages_follow_each_other() {
    let (scenario, run) = &*RUN;
    let story = Story::new(scenario, run).unwrap();
    assert!(story.stages.is_sorted_by(|one, next| one < next), "{:?}", story.stages);
    let nodes = |stage: usize| run.snapshots[story.stages[stage]].cluster.nodes.len();
    assert_eq!((nodes(0), nodes(6)), (2, 2));
    assert!(nodes(3) > nodes(2) && nodes(3) > nodes(5));
}

#[test]
fn texts_neither_overlap_nor_leave_the_picture() {
    let (scenario, run) = &*RUN;
    let story = Story::new(scenario, run).unwrap();
    for moment in (0..7).map(|stage| story.stage(stage)).chain(story.moments(200)) {
        let texts = frame::draw(&story, moment).texts;
        for (index, one) in texts.iter().enumerate() {
            let place = one.1;
            let inside = place.x >= 0.0 && place.y >= 0.0 && place.right() <= WIDTH && place.bottom() <= HEIGHT;
            assert!(inside, "{one:?} in {}", moment.snapshot);
            for other in &texts[..index] {
                let beside = place.x >= other.1.right() || other.1.x >= place.right();
                let above = place.y >= other.1.bottom() || other.1.y >= place.bottom();
                assert!(beside || above, "{one:?} over {other:?} in {}", moment.snapshot);
            }
        }
    }
}

#[test]
fn text_from_outside_is_shortened_and_escaped() {
    let font = text::plain(15.0, "#000");
    let short = font.shorten("leaves 13 pods waiting for a node", 120.0);
    assert!(short.ends_with('…') && font.width(&short) <= 120.0, "{short}");
    assert_eq!(font.shorten("short", 120.0), "short");
    assert_eq!(font.wrap("one two three four", font.width("one two "), 2), ["one two", "three f…"]);
    assert_eq!(text::escape("<a & \"b\"> 日"), "&lt;a &amp; &quot;b&quot;&gt; ?");
}

#[test]
fn measured_widths_are_what_is_drawn() {
    let mut canvas = Canvas::default();
    let text = "Tasks queued: 12, AVATAR To";
    canvas.text(10.0, 50.0, text::bold(20.0, "#000"), text);
    let options = Options { fontdb: Arc::clone(&text::FONTS), ..Options::default() };
    let plain = canvas.document().replace("textLength", "data-length");
    let tree = Tree::from_str(&plain, &options).unwrap();
    let drawn = tree.root().children()[0].bounding_box().width();
    assert!((drawn - canvas.texts[0].1.w).abs() < 0.5, "{drawn} {:?}", canvas.texts[0]);
}
